"""Claims judged by runs that are written by hand; their intervals are worked out in each test."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from dino_lab.cli import app as cli
from dino_lab.reports.study.claims import VERDICTS, Judgement, judge
from dino_lab.reports.study.files import write_study
from dino_lab.reports.study.results import read_results
from dino_lab.runs.claims import Claim
from dino_lab.runs.status import Status
from dino_lab.runs.study import Arm, Study, read_study
from dino_lab.training.diagnostics import Verdict

MakeArm = Callable[..., Arm]
MakeStudy = Callable[..., Study]
LEARNED = Status("finished", 4, 4, "learning", "learning: fine")
DOUBTFUL = Status("finished", 4, 4, "learning", "signs of collapse (3 of 5 rows): entropy 0.1", doubtful=True)
UNIFORM = Status("collapsed", 4, 4, "collapsed to uniform", "collapsed to uniform: ln K")
ONE_OUTPUT = Status("finished", 4, 4, "collapsed to one output", "collapsed to one output: 1.0")
FAILED = Status("failed", 2, 4, "learning", "learning: fine", "the loss is nan")
# Differences to `base`, whose scores are 0.5, 0.6, 0.7. With t(0.975, 2) = 4.3027 and standard deviation 0.01
# the interval of three seeds is 4.3027 * 0.01 / sqrt(3) = 0.0248 to each side.
BASE = (0.5, 0.6, 0.7)
HALF = 0.0248414


def shifted(by: float) -> tuple[float, ...]:
    return tuple(score + by + noise for score, noise in zip(BASE, (-0.01, 0.0, 0.01), strict=True))


def judged(study: Study) -> Judgement:
    (found,) = judge(study, read_results(study))
    return found


@pytest.mark.parametrize(
    ("by", "claim", "outcome"),
    [
        (0.03, {}, "as expected"),  # 0.0052 to 0.0548
        (0.02, {}, "cannot tell"),  # -0.0048 to 0.0448
        (-0.03, {}, "not as expected"),
        (0.05, {"by": 0.02}, "as expected"),  # 0.0252 to 0.0748
        (0.05, {"by": 0.03}, "cannot tell"),
        (0.01, {"by": 0.04}, "not as expected"),  # -0.0148 to 0.0348
        (0.03, {"mode": "min"}, "not as expected"),
        (-0.03, {"mode": "min"}, "as expected"),
        (-0.05, {"mode": "min", "by": 0.02}, "as expected"),
    ],
)
def test_a_difference_is_told_by_its_whole_interval(
    by: float, claim: dict[str, object], outcome: str, make_arm: MakeArm, make_study: MakeStudy
) -> None:
    arms = [make_arm("base", *BASE), make_arm("new", *shifted(by))]
    found = judged(make_study(arms, {"better": "new", "than": "base", **claim}))
    assert found.outcome == outcome
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(by)
    assert found.difference.half == pytest.approx(HALF, rel=1e-4)


@pytest.mark.parametrize(
    ("by", "within", "outcome"),
    [
        (0.0, 0.03, "as expected"),
        (0.01, 0.04, "as expected"),  # -0.0148 to 0.0348
        (0.01, 0.03, "cannot tell"),
        (-0.01, 0.03, "cannot tell"),
        (0.06, 0.03, "not as expected"),  # 0.0352 to 0.0848
        (-0.06, 0.03, "not as expected"),
        (-0.05, 0.03, "cannot tell"),
    ],
)
def test_arms_are_equal_if_the_whole_interval_is_small(
    by: float, within: float, outcome: str, make_arm: MakeArm, make_study: MakeStudy
) -> None:
    arms = [make_arm("base", *BASE), make_arm("new", *shifted(by))]
    assert judged(make_study(arms, {"equal": ["new", "base"], "within": within})).outcome == outcome


def test_arms_without_any_difference_are_equal_and_none_is_better(
    make_arm: MakeArm, make_study: MakeStudy
) -> None:
    arms = [make_arm("base", *BASE), make_arm("same", *BASE)]
    study = make_study(arms, {"better": "same", "than": "base"}, {"equal": ["same", "base"], "within": 1e-6})
    outcomes = [found.outcome for found in judge(study, read_results(study))]
    assert outcomes == ["not as expected", "as expected"]


@pytest.mark.parametrize(
    ("claim", "outcome"),
    [
        ({"above": "untrained"}, "as expected"),  # 0.3 more than 0.1, 0.0248 to each side
        ({"above": "untrained", "by": 0.3}, "cannot tell"),
        ({"below": "untrained"}, "not as expected"),
        ({"near": "untrained", "within": 0.02}, "not as expected"),
        ({"above": "raw pixels"}, "not as expected"),
        ({"below": "raw pixels"}, "as expected"),
        ({"below": "raw pixels", "by": 0.06}, "as expected"),
        ({"below": "raw pixels", "by": 0.09}, "cannot tell"),
        ({"near": "raw pixels", "within": 0.2}, "as expected"),
        ({"above": 0.3}, "as expected"),
        ({"near": 0.4, "within": 0.03}, "as expected"),
        ({"below": 0.41}, "cannot tell"),
    ],
)
def test_an_arm_is_compared_with_floors_and_numbers(
    claim: dict[str, object], outcome: str, make_arm: MakeArm, make_study: MakeStudy
) -> None:
    floors = {"knn.5nn": {"raw pixels": 0.49, "chance": 0.1}}
    status = Status("finished", 4, 4, "learning", scores_before={"knn.5nn": 0.1}, floors=floors)
    arm = make_arm("new", *((score, status) for score in (0.39, 0.4, 0.41)))
    assert judged(make_study([arm], {"arm": "new", **claim})).outcome == outcome


@pytest.mark.parametrize(
    ("word", "endings", "outcome", "having"),
    [
        ("one output", [ONE_OUTPUT] * 3, "as expected", 3),
        ("uniform", [UNIFORM] * 3, "as expected", 3),
        ("collapsed", [UNIFORM, ONE_OUTPUT, UNIFORM], "as expected", 3),
        ("learning", [LEARNED] * 3, "as expected", 3),
        ("one output", [UNIFORM] * 3, "not as expected", 0),
        ("collapsed", [LEARNED] * 2, "not as expected", 0),
        ("learning", [UNIFORM, ONE_OUTPUT], "not as expected", 0),
        ("one output", [ONE_OUTPUT, ONE_OUTPUT, LEARNED], "cannot tell", 2),
        ("learning", [LEARNED, DOUBTFUL], "cannot tell", 1),
        ("collapsed", [DOUBTFUL, DOUBTFUL], "cannot tell", 0),
        ("learning", [LEARNED, FAILED], "cannot tell", 1),
        ("collapsed", [Status(), Status()], "cannot tell", 0),
    ],
)
def test_a_verdict_is_expected_of_every_run(
    word: str,
    endings: list[Status],
    outcome: str,
    having: int,
    make_arm: MakeArm,
    make_study: MakeStudy,
) -> None:
    claim = {"arm": "a", "verdict": word, "metric": None, "mode": None}
    found = judged(make_study([make_arm("a", *endings)], claim))
    assert (found.outcome, found.having, found.runs) == (outcome, having, len(endings))


def test_the_words_of_verdicts_are_those_of_the_diagnostics() -> None:
    ends = {name for names in VERDICTS.values() for name in names}
    assert ends | {"warming up"} == set(get_args(get_type_hints(Verdict)["name"]))
    words = get_args(get_args(get_type_hints(Claim)["verdict"])[0])
    assert set(VERDICTS) == set(words)


def test_what_is_missing_is_told(make_arm: MakeArm, make_study: MakeStudy) -> None:
    arms = [
        make_arm("base", *BASE),
        make_arm("partly", 0.6, 0.7, FAILED),
        make_arm("never", Status(), Status()),
        make_arm("once", 0.9),
    ]
    study = make_study(
        arms,
        {"better": "partly", "than": "base"},
        {"better": "never", "than": "base"},
        {"better": "once", "than": "base"},
        {"arm": "base", "above": "raw pixels"},
        {"arm": "base", "above": 0.1, "metric": "probe.top1"},
    )
    found = [(one.outcome, one.reason) for one in judge(study, read_results(study))]
    assert found == [
        ("as expected", "partly: 1 failed: the loss is nan"),
        ("cannot tell", "never: 2 not run"),
        ("cannot tell", "one seed, so that there is no interval"),
        ("cannot tell", "no run says what knn.5nn is raw pixels"),
        ("cannot tell", "base: no probe.top1"),
    ]


def test_a_claim_may_be_about_another_number(make_arm: MakeArm, make_study: MakeStudy) -> None:
    arms = [make_arm("base", *BASE, entropy=2.0), make_arm("new", *BASE, entropy=6.93)]
    claim = {"arm": "new", "near": 6.9315, "within": 0.05, "metric": "entropy"}
    found = judged(make_study(arms, claim))
    assert found.outcome == "as expected"
    assert found.statement == "new near 6.9315 within 0.05, entropy"


def test_power_is_told_where_nothing_was_seen(make_arm: MakeArm, make_study: MakeStudy) -> None:
    arms = [make_arm("base", *BASE), make_arm("new", *shifted(0.02))]
    found = judged(make_study(arms, {"better": "new", "than": "base"}))
    assert found.cells()[3] == "0.0326"  # 3.264 standard deviations of 0.01, for three seeds
    shown = judged(make_study([arms[0], make_arm("far", *shifted(0.1))], {"better": "far", "than": "base"}))
    assert shown.cells()[3] == ""


def test_texts_of_claims_are_one_line_that_no_terminal_obeys(
    make_arm: MakeArm, make_study: MakeStudy
) -> None:
    claim = {"arm": "a", "above": 0.1, "claim": "two\nlines \x1b[2J", "paper": "\x07 72.8"}
    cells = judged(make_study([make_arm("a", *BASE)], claim)).cells()
    assert cells[5:] == [r"two lines \x1b[2J", r"\x07 72.8"]


CLAIMS = (
    {"better": "new", "than": "base", "claim": "Multi-crop helps | DINO", "paper": "72.8 against 67.9"},
    {"arm": "new", "verdict": "uniform", "metric": None, "mode": None, "paper": 0.1},
)


@pytest.fixture
def claimed(make_arm: MakeArm, make_study: MakeStudy, tmp_path: Path) -> Path:
    """The folder of a study with a claim that is shown and one that is not."""
    folder = tmp_path / "out"
    arms = [make_arm("base", *BASE), make_arm("new", *shifted(0.03))]
    write_study(make_study(arms, *CLAIMS), folder)
    return folder


def test_claims_are_in_the_files(claimed: Path, make_study: MakeStudy) -> None:
    text = (claimed / "table.md").read_text()
    head, _, table = text.partition("## Claims\n\n")
    assert "| arm | seeds |" in head
    lines = table.splitlines()
    assert lines[0] == "| expected | outcome | measured | remark | claim | paper |"
    assert lines[2] == (
        "| new better than base | as expected | +0.0300 ± 0.0248 |  | Multi-crop helps &#124; DINO | "
        "72.8 against 67.9 |"
    )
    assert lines[3] == (
        "| new: uniform | not as expected | 0 of 3 runs (share 0.00 to 0.71) | 3 learning |  | 0.1 |"
    )
    rows = list(csv.DictReader((claimed / "claims.csv").read_text().splitlines()))
    assert [row["outcome"] for row in rows] == ["as expected", "not as expected"]
    assert float(rows[0]["difference"]) == pytest.approx(0.03)
    assert float(rows[0]["difference_interval"]) == pytest.approx(HALF, rel=1e-4)
    assert float(rows[1]["share_high"]) == pytest.approx(1 - 0.025 ** (1 / 3))  # of 0 in 3
    write_study(make_study(read_study(claimed).arms), claimed)  # the claims were taken out of the file
    assert not (claimed / "claims.csv").exists()
    assert "Claims" not in (claimed / "table.md").read_text()


def test_claims_come_back(claimed: Path) -> None:
    study = read_study(claimed)
    assert [claim.labels for claim in study.expect] == [["new", "base"], ["new"]]
    assert study.expect[1] == Claim(arm="new", verdict="uniform", paper=0.1)
    (claimed / "study.json").write_text((claimed / "study.json").read_text().replace("uniform", "equal"))
    assert cli.main(["compare", str(claimed)]) == 2


def test_compare_checks(
    claimed: Path, make_study: MakeStudy, make_arm: MakeArm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(claimed)]) == 0
    out = capsys.readouterr().out
    assert "new better than base  as expected      +0.0300 ± 0.0248" in out
    assert cli.main(["compare", str(claimed), "--check"]) == 1
    write_study(make_study(read_study(claimed).arms, CLAIMS[0]), claimed)
    assert cli.main(["compare", str(claimed), "--check"]) == 0
    write_study(make_study(read_study(claimed).arms), claimed)
    capsys.readouterr()
    assert cli.main(["compare", str(claimed), "--check"]) == 2
    assert "none of these sweeps has claims" in capsys.readouterr().err


def test_claims_of_several_sweeps_keep_their_arms(
    claimed: Path,
    make_study: MakeStudy,
    make_arm: MakeArm,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arms = [make_arm("base", *BASE), make_arm("new", *shifted(-0.1))]
    other = make_study([arms[0], Arm("new", {}, arms[1].folders)], CLAIMS[0])
    other.write(tmp_path / "other")
    assert cli.main(["compare", str(claimed), str(tmp_path / "other"), "--check"]) == 1
    out = capsys.readouterr().out
    assert "s out: new better than s out: base" in out
    assert "s other: new better than s other: base" in out


def test_claims_are_on_the_page(claimed: Path, tmp_path: Path) -> None:
    to = tmp_path / "page.html"
    assert cli.main(["report", str(claimed), "--to", str(to)]) == 0
    page = to.read_text()
    assert '<section id="claims">' in page
    assert "<td>new: uniform</td><td>not as expected</td>" in page
    assert "Multi-crop helps | DINO" in page
