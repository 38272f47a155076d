"""Tables that no program obeys: TeX, Markdown, spreadsheets; and comparisons of runs without their plugins."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dino_lab.cli import app as cli
from dino_lab.registry import registry
from dino_lab.reports.arguments import with_runs_below
from dino_lab.reports.study.comparison import study_of
from dino_lab.reports.study.files import comma_separated, latex, markdown, records
from dino_lab.reports.study.findings import findings
from dino_lab.reports.study.results import read_results
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, write_status
from dino_lab.runs.study import Arm, Study

EVIL = "=cmd|' /C calc'!A0\nx_1 {50%} ~ ^ \\ & # $ <b> `c` *d* [e](f)"


def leave(folder: Path, score: float, spec: str = "") -> Path:
    """What a finished run has of interest here."""
    write_status(folder, Status("collapsed", 4, 4))
    RunFolder(folder).append_row({"step": 4, "epoch": 1.0, "knn.5nn": score})
    if spec:
        (folder / "spec.yaml").write_text(spec)
    return folder


@pytest.fixture
def evil(tmp_path: Path) -> Study:
    arms = (
        Arm(EVIL, {"t": "@SUM(1)"}, {0: leave(tmp_path / "a", 0.5)}),
        Arm("b", {"t": "-2"}, {0: leave(tmp_path / "b", 0.6)}),
    )
    return Study("s", "knn.5nn", "max", EVIL, ("t",), arms)


def test_latex_is_one_row_a_line_and_every_special_letter_is_escaped(evil: Study) -> None:
    text = latex(findings(evil, read_results(evil)))
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert all(row.replace(r"\&", "").count("&") == 4 for row in rows)
    assert rows[1].startswith(
        r"=cmd\textbar{}' /C calc'!A0 x\_1 \{50\%\} \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{} \& \# \$ \textless{}b\textgreater{} `c` *d* [e](f) & 1 & "
    )
    assert all(line.startswith(("%", "\\", "=cmd", "arm", "b ")) for line in text.splitlines())


def test_markdown_is_one_row_a_line_without_markup(evil: Study) -> None:
    text = markdown(findings(evil, read_results(evil)))
    (row,) = [line for line in text.splitlines() if line.startswith("| =cmd")]
    assert r"x_1 {50%} \~ ^ \\ &amp; # $ &lt;b> \`c\` \*d\* \[e](f)" in row
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [11] * 4


def test_a_spreadsheet_computes_nothing(evil: Study) -> None:
    rows = list(
        csv.DictReader(io.StringIO(comma_separated(records(findings(evil, read_results(evil)).lines))))
    )
    assert rows[0]["arm"] == f"'{EVIL}"
    assert [row["t"] for row in rows] == ["'@SUM(1)", "'-2"]
    assert float(rows[1]["difference"]) == pytest.approx(0.1)  # a number stays one


SPEC = """\
name: mine
seed: {seed}
data: {{name: of_a_plugin, path: x}}
targets: {{name: {targets}, temperature: 0.04}}
teacher: {{name: ema, momentum: {{start: {momentum}, end: {momentum}, shape: linear, warmup: 0.0, until: 1.0}}}}
"""


def test_runs_are_compared_without_their_plugin_and_found_below(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, (targets, momentum) in enumerate(
        (("center", 0.9), ("center", 0.9), ("softmax", 0.9), ("center", 0.5))
    ):
        text = SPEC.format(seed=i % 2, targets=targets, momentum=momentum)
        leave(tmp_path / "runs" / "mine" / f"{i}", 0.1 * i, text)
    paths = with_runs_below([tmp_path / "runs"])
    assert [path.name for path in paths] == ["0", "1", "2", "3"]
    study = study_of(paths, registry, None)
    assert [(arm.label, list(arm.folders)) for arm in study.arms] == [
        ("mine", [0, 1]),
        ("mine targets=softmax", [0]),
        ("mine teacher.momentum=0.5", [1]),
    ]
    assert cli.main(["compare", str(tmp_path / "runs" / "mine")]) == 0
    assert "mine targets=softmax" in capsys.readouterr().out
    (tmp_path / "none").mkdir()
    assert cli.main(["compare", str(tmp_path / "none")]) == 2
    assert "the folder is empty" in capsys.readouterr().err


def test_the_best_arm_comes_with_its_doubts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def arm(name: str, *scores: float) -> Arm:
        return Arm(name, {}, {i: leave(tmp_path / name / f"{i}", score) for i, score in enumerate(scores)})

    arms = (arm("base", 0.5, 0.6, 0.7), arm("good", 0.52, 0.61, 0.71), arm("close", 0.53, 0.59, 0.70))
    Study("s", "knn.5nn", "max", "base", (), arms).write(tmp_path / "s")
    assert cli.main(["best", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("good: knn.5nn 0.6133 ± ")
    assert "to the baseline, base: +0.0133 ± 0.0143, no difference seen" in out
    assert "to the next best, close: +0.0067 ± " in out
    assert out.count("no difference seen") == 2
