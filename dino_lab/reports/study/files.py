"""The files of a study: study.json, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_lab.reports.study.claims import CLAIM_HEADERS
from dino_lab.reports.study.effects import EFFECT_HEADERS
from dino_lab.reports.study.figures import write_figures
from dino_lab.reports.study.findings import Findings, findings
from dino_lab.reports.study.results import read_results
from dino_lab.reports.study.table import HEADERS, ArmLine, filled
from dino_lab.runs.study import Study

_TEX_COLUMNS = (0, 1, 2, 5, 6)  # of HEADERS: those that a paper prints
_TEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$"},
}
_MARKDOWN = {"&": "&amp;", "<": "&lt;", "|": "&#124;", **{letter: f"\\{letter}" for letter in "\\`*[~"}}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # first letters of what spreadsheets compute


def write_study(study: Study, folder: Path) -> Findings:
    """Read the runs and write every file of their study; returns what they say."""
    import pyarrow
    import pyarrow.parquet

    study.write(folder)
    results = read_results(study)
    found = findings(study, results)
    for name, text in (
        ("table.md", markdown(found)),
        ("table.tex", latex(found)),
        ("table.csv", comma_separated(records(found.lines))),
        ("effects.csv", comma_separated(found.effects.records() if found.effects is not None else [])),
        ("claims.csv", comma_separated([claim.record() for claim in found.claims])),
    ):
        if text:
            (folder / name).write_text(text, encoding="utf-8")
        else:  # of a study that had some, in the same folder
            (folder / name).unlink(missing_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records(found.lines)), folder / "table.parquet")
    write_figures(study, results, folder)
    return found


def markdown(found: Findings) -> str:
    """The tables in Markdown, each with its explanation."""
    table = _markdown_table(HEADERS, [line.cells() for line in (*found.lines, *found.floors)])
    parts = [f"# {_markdown(found.study.name)}", *(f"**{_markdown(said)}**" for said in found.warnings)]
    parts += [table, _bullets(found.notes)]
    if found.claims:
        claims = _markdown_table(*filled(CLAIM_HEADERS, [claim.cells() for claim in found.claims]))
        parts += ["## Claims", claims, _bullets(found.claim_notes)]
    if found.effect_notes:
        effects = _markdown_table(EFFECT_HEADERS, found.effect_rows) if found.effect_rows else ""
        parts += ["## Main effects and interactions", effects, _bullets(found.effect_notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(map(_markdown, row))} |" for row in (headers, *rows)]
    lines.insert(1, f"|{' --- |' * len(headers)}")
    return "\n".join(lines)


def _bullets(notes: Sequence[str]) -> str:
    return "\n".join(f"- {_markdown(note)}" for note in notes)


def latex(found: Findings) -> str:
    """A tabular with the columns that a paper prints, its explanation as comments."""
    lines = (*found.lines, *found.floors)
    rows = [[row[i] for i in _TEX_COLUMNS] for row in (HEADERS, *(line.cells() for line in lines))]
    body = [" & ".join(map(_tex, row)) + r" \\" for row in rows]
    body.insert(1, r"\hline")
    comments = [f"% {' '.join(note.split())}" for note in (*found.warnings, *found.notes)]
    return "\n".join([*comments, r"\begin{tabular}{lrlll}", *body, r"\end{tabular}", ""])


def comma_separated(rows: Sequence[dict[str, Any]]) -> str:
    """CSV with every digit; a text that a spreadsheet would take for a formula begins with an apostrophe.

    Of no rows it is empty.
    """
    if not rows:
        return ""
    out = io.StringIO()
    plain = [{_no_formula(key): _no_formula(value) for key, value in row.items()} for row in rows]
    writer = csv.DictWriter(out, list(plain[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return out.getvalue()


def records(found: Sequence[ArmLine]) -> list[dict[str, Any]]:
    """All lines as values for programs; a column of settings holds numbers alone, or texts alone."""
    plain = [line.record() for line in found]
    for axis in found[0].settings if found else ():
        values = [record[axis] for record in plain if record[axis] is not None]
        numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        for record in plain:
            if record[axis] is not None:
                record[axis] = float(record[axis]) if numbers else _text(record[axis])
    return plain


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _no_formula(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _markdown(text: str) -> str:
    return "".join(_MARKDOWN.get(letter, letter) for letter in " ".join(text.split()))


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))
