"""Figures as a part of BENCHMARKS.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.runner import Result
from benchmarks.gpu.worker import ASKED
from benchmarks.report import table

COMMAND = "python -m benchmarks.gpu --to FOLDER"


def page(machine: Mapping[str, str], results: Sequence[Result]) -> str:
    """The machine, the asked figures of all parts beside what was measured, then the tables of each part."""
    lines = ", ".join(f"{name} {value}" if name else value for name, value in machine.items())
    asked = [line for result in results for line in result.figures if line["table"] == ASKED]
    parts = [["part", "seconds", "went well", "checks passed"], *map(_line, results)]
    blocks = [f"## On a GPU\n\n`{COMMAND}`, {lines}", table(parts[0], parts[1:])]
    blocks += _tables(asked)
    for result in results:
        blocks.append(f"### {result.title}")
        if result.error:
            blocks.append("\n".join(["```", result.error, "```"]))
        blocks += _tables([line for line in result.figures if line["table"] != ASKED])
    return "\n\n".join(blocks) + "\n"


def _line(result: Result) -> list[str]:
    """A part in the table of parts."""
    passed = [line["cells"]["passed"] for line in result.figures if "passed" in line.get("cells", {})]
    return [
        result.title,
        f"{result.seconds:.0f}",
        _text(result.ok),
        f"{sum(passed)} of {len(passed)}" if passed else "",
    ]


def _tables(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tables by name, with their sentences; a table of one part has all columns that one of its rows has."""
    blocks = []
    for name in dict.fromkeys(line["table"] for line in figures):
        its = [line for line in figures if line["table"] == name]
        rows = [line["cells"] for line in its if "cells" in line]
        header = list(dict.fromkeys(key for row in rows for key in row))
        notes = [line["note"] for line in its if "note" in line]
        shown = [table(header, [[_text(row.get(key)) for key in header] for row in rows])] if rows else []
        blocks += ["\n\n".join([f"{name}:", *shown, *notes])]
    return blocks


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case {"median": middle, "n": 1}:
            return f"{_number(middle)} (n = 1)"
        case {"median": middle, "low": low, "high": high, "n": count}:
            return f"{_number(middle)} ({_number(low)} to {_number(high)}, n = {count})"
        case int() | float():
            return _number(value)
    return str(value).replace("|", "/")


def _number(value: float) -> str:
    """With three digits at least, and all before the point."""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
