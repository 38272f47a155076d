"""What needs no learning, beside the arms: rows of the table, and what is said where no arm is above."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_lab.cli import app as cli
from dino_lab.reports.study.files import write_study
from dino_lab.reports.study.findings import Findings, findings
from dino_lab.reports.study.results import read_results
from dino_lab.runs.status import Status
from dino_lab.runs.study import Arm, Study

METRIC = "knn.5nn"
BEFORE = (0.30, 0.32, 0.31)
MakeStudy = Callable[..., Study]
MakeGains = Callable[..., Arm]


@pytest.fixture
def gains(make_arm: Callable[..., Arm]) -> MakeGains:
    """An arm of three seeds whose scores rose by so much; raw pixels score 0.39, chance 0.1."""

    def make(label: str, *by: float, before: tuple[float, ...] = BEFORE, pixels: bool = True) -> Arm:
        floors = {METRIC: {"chance": 0.1, "raw pixels": 0.39}} if pixels else {}
        endings = [
            (start + gain, Status("finished", 4, 4, "learning", scores_before={METRIC: start}, floors=floors))
            for start, gain in zip(before, by, strict=True)
        ]
        return make_arm(label, *endings)

    return make


def said(study: Study) -> Findings:
    return findings(study, read_results(study))


def test_floors_are_rows_of_the_table(gains: MakeGains, make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study([gains("a", 0.20, 0.21, 0.22), gains("b", 0.18, 0.18, 0.18)])
    rows = [line.cells() for line in said(study).floors]
    assert [row[0] for row in rows] == ["untrained", "raw pixels", "chance"]
    # Standard deviation 0.01 over three seeds: 4.3027 * 0.01 / sqrt(3).
    assert rows[0][1:7] == ["3", "0.3100 ± 0.0248", "0.3100", "0.0100", "-0.2100 ± 0.0248", "worse"]
    assert rows[1][1:5] == ["", "0.3900", "0.3900", ""]
    assert rows[1][7:] == ["", "", ""]
    write_study(study, tmp_path / "out")
    assert "| untrained | 3 | 0.3100 ± 0.0248 |" in (tmp_path / "out" / "table.md").read_text()
    assert r"raw pixels &  & 0.3900 &" in (tmp_path / "out" / "table.tex").read_text()
    records = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert [record["arm"] for record in records] == ["a", "b"]
    assert float(records[0]["above_untrained"]) == pytest.approx(0.21)
    assert float(records[0]["above_untrained_interval"]) == pytest.approx(0.0248414, rel=1e-4)


def test_without_any_floor_there_is_no_row(make_arm: Callable[..., Arm], make_study: MakeStudy) -> None:
    arm = make_arm("a", (0.5, Status("finished", 4, 4, "learning")))
    found = said(make_study([arm]))
    assert (list(found.floors), list(found.warnings), list(found.remarks)) == ([], [], [])


def test_no_arm_above_untrained_is_told_before_the_table(
    gains: MakeGains, make_study: MakeStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = make_study([gains("a", 0.01, -0.01, 0.02), gains("b", 0.0, 0.01, -0.02)])
    assert list(said(study).warnings) == [
        "no arm is seen to be better than untrained (knn.5nn 0.3100)",
        "no arm is seen to be better than raw pixels (knn.5nn 0.3900)",
    ]
    write_study(study, tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert text.index("**no arm is seen to be better than untrained") < text.index("no difference seen")
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("no arm is seen to be better than untrained (knn.5nn 0.3100)\n")
    to = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "out"), "--to", str(to)]) == 0
    page = to.read_text()
    assert page.index("no arm is seen to be better than untrained") < page.index("no difference seen")


def test_an_arm_whose_floor_is_not_known_may_be_above(
    gains: MakeGains, make_arm: Callable[..., Arm], make_study: MakeStudy
) -> None:
    unknown = make_arm("old", *((0.9, Status("finished", 4, 4, "learning")) for _ in range(3)))
    assert list(said(make_study([gains("a", 0.01, -0.01, 0.02), unknown])).warnings) == []


def test_arms_that_are_not_above_untrained_are_named(gains: MakeGains, make_study: MakeStudy) -> None:
    study = make_study([gains("a", 0.2, 0.21, 0.2), gains("flat", 0.0, 0.01, -0.02)])
    found = said(study)
    assert list(found.warnings) == []
    assert "not better than before training, seed by seed: flat" in found.notes


def test_a_small_number_may_be_the_better_one(gains: MakeGains, make_study: MakeStudy) -> None:
    arms = [gains("a", -0.2, -0.21, -0.2, pixels=False)]
    assert list(said(make_study(arms, mode="min")).warnings) == []
    assert list(said(make_study(arms)).warnings) == [
        "no arm is seen to be better than untrained (knn.5nn 0.3100)"
    ]


def test_networks_that_begin_differently_are_told(gains: MakeGains, make_study: MakeStudy) -> None:
    study = make_study(
        [gains("small", 0.2, 0.21, 0.2), gains("large", 0.2, 0.21, 0.2, before=(0.40, 0.42, 0.41))]
    )
    found = said(study)
    assert found.floors[0].cells()[2].startswith("0.3600 ± ")
    assert (
        "untrained: mean over arms, whose networks differ: from 0.3100 (small) to 0.4100 (large)"
        in found.notes
    )


def test_one_seed_is_compared_by_its_number(gains: MakeGains, make_study: MakeStudy) -> None:
    up, down = gains("up", 0.01, before=(0.3,)), gains("down", -0.01, before=(0.3,))
    assert (
        "no arm is seen to be better than untrained (knn.5nn 0.3000)"
        not in said(make_study([up, down])).warnings
    )
    assert "no arm is seen to be better than untrained (knn.5nn 0.3000)" in said(make_study([down])).warnings


@pytest.mark.parametrize(
    ("winner", "warnings"),
    [
        (
            (0.02, 0.01, 0.0),
            [
                "it cannot be told from the baseline, base; with 80 % power 3 seeds show a difference of 0.0326",
                "it is not better than untrained, knn.5nn 0.3100",
                "it is not better than raw pixels, knn.5nn 0.3900",
            ],
        ),
        ((0.05, 0.05, 0.06), ["it is not better than raw pixels, knn.5nn 0.3900"]),
        ((0.2, 0.21, 0.2), []),
    ],
)
def test_the_best_arm_comes_with_warnings(
    winner: tuple[float, ...],
    warnings: list[str],
    gains: MakeGains,
    make_study: MakeStudy,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = make_study([gains("base", 0.0, 0.0, 0.0), gains("win", *winner)])
    study.write(tmp_path / "out")
    assert cli.main(["best", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("win: ")
    assert [line.removeprefix("  warning: ") for line in out.splitlines() if "warning" in line] == warnings
