"""A table in a narrow terminal: words are never cut."""

from __future__ import annotations

import inspect

import pytest

from dino_lab.cli.app import main
from dino_lab.cli.console import wrapped_table
from dino_lab.registry import registry
from dino_lab.registry.kinds import FOLDERS
from dino_lab.spec.parameter_words import rows

ROWS = [
    ["temperature", "number >= 0", "[0.4, 1]", "of the softmax of the student, tau_s"],
    ["k", "whole number", "3", "neighbours"],
]


def test_what_fits_is_one_line_a_row() -> None:
    assert wrapped_table(ROWS, 80) == [
        "temperature  number >= 0   [0.4, 1]  of the softmax of the student, tau_s",
        "k            whole number  3         neighbours",
    ]


def test_long_cells_are_wrapped_between_words() -> None:
    assert wrapped_table(ROWS, 50) == [
        "temperature  number   [0.4, 1]  of the softmax of",
        "             >= 0               the student, tau_s",
        "k            whole    3         neighbours",
        "             number",
    ]


def test_where_words_do_not_fit_cells_stand_below_each_other() -> None:
    assert wrapped_table(ROWS, 20) == [
        "temperature",
        "  number >= 0",
        "  [0.4, 1]",
        "  of the softmax of",
        "  the student, tau_s",
        "k",
        "  whole number",
        "  3",
        "  neighbours",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_component_loses_a_word_or_leaves_its_width(width: int) -> None:
    for kind in FOLDERS:
        for name in registry.names(kind):
            table = rows(registry.find(kind, name).params)
            if not table:
                continue
            lines = wrapped_table(table, width)
            words = sorted(word for row in table for cell in row for word in cell.split())
            assert sorted(word for line in lines for word in line.split()) == words
            assert all(len(line) <= width or " " not in line.strip() for line in lines), f"{kind} {name}"


@pytest.mark.parametrize(
    ("kind", "name"), [("evaluator", "copy_detection"), ("data", "shapes"), ("loss", "mse")]
)
def test_show_stays_in_a_terminal_of_80_columns(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["show", kind, name]) == 0
    title, origin, where, *lines = capsys.readouterr().out.splitlines()
    assert (title, origin) == (f"{kind}: {name}", "built-in")
    assert where.endswith(f"{name}.py:{where.rsplit(':')[-1]}")
    assert max(map(len, lines)) <= 80
    doc = inspect.getdoc(registry.find(kind, name).cls) or ""
    assert " ".join(doc.split()) in " ".join(" ".join(lines).split())
