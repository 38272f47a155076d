"""Tables on terminals of every width: no label and no number is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dino_lab.cli import sweep_text
from dino_lab.reports.study.estimate import estimate
from dino_lab.reports.study.findings import Findings
from dino_lab.reports.study.table import HEADERS, ArmLine
from dino_lab.runs.study import Study

LABELS = ["targets.momentum=0.9 targets.temperature=0.04", "targets.momentum=0.9 targets.temperature=0.05"]


@pytest.fixture
def study() -> Findings:
    found = [
        ArmLine(
            label=label,
            settings={},
            planned=3,
            score=estimate([0.2311, 0.2422, 0.2533 + i]),
            difference=estimate([0.01, 0.02, 0.03]) if i else None,
            reading="no difference seen" if i else "baseline",
            ended="1 failed: the loss is nan after 17 steps" if i else "finished",
            rate=1234.0,
            hours=0.25,
        )
        for i, label in enumerate(LABELS)
    ]
    return Findings(Study("s", "knn.20nn", "max", LABELS[0], (), ()), found)


def printed(study: Findings, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    out = io.StringIO()
    terminal = Console(
        file=out, width=width, force_terminal=True, color_system=None, markup=False, highlight=False
    )
    monkeypatch.setattr(sweep_text, "console", lambda: terminal)
    sweep_text.print_study(study)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [30, *range(50, 130, 3), 200])
def test_nothing_is_cut(study: Findings, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(study, width, monkeypatch)
    assert all(len(line.rstrip()) <= width for line in lines)
    assert "…" not in "".join(lines)
    text = " ".join(" ".join(lines).split())
    scores = [line.cells()[2] for line in study.lines]
    for words in [*scores, "+0.0200 ± 0.0248", "baseline", "difference", "seen"]:
        assert words in text
    if width >= 50:
        for word in {word for label in LABELS for word in label.split()}:
            assert word in text
    else:
        assert all(word in text.replace(" ", "") for label in LABELS for word in label.split())


def test_a_wide_terminal_has_every_column(
    study: Findings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    header = " ".join(printed(study, 220, monkeypatch))
    assert all(name in header for name in HEADERS)
    assert "not shown" not in capsys.readouterr().out


def test_a_narrow_one_says_what_it_leaves_out(
    study: Findings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    header = " ".join(printed(study, 150, monkeypatch))
    assert "median" not in header
    assert "reading" in header
    assert "not shown, for want of width: median" in capsys.readouterr().out
