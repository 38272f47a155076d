"""Claims about the arms of a study, judged by their runs: as expected, not, or cannot tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dino_lab.errors import printable
from dino_lab.reports.study.estimate import POWER, Estimate, paired, share
from dino_lab.reports.study.results import ArmResult, read_arm
from dino_lab.reports.study.table import ended, percent, with_interval
from dino_lab.runs.claims import Claim
from dino_lab.runs.status import Status
from dino_lab.runs.study import Study

Outcome = Literal["as expected", "not as expected", "cannot tell"]
CLAIM_HEADERS = ("expected", "outcome", "measured", "seen from", "remark", "claim", "paper")
SEEN_FROM = (
    f"seen from: the smallest true difference that so many seeds show with {percent(POWER)} power (paired t "
    "test), if they scatter as these do"
)
# How the verdict of a run ends that is meant by a word of a claim.
VERDICTS = {
    "learning": ("learning",),
    "collapsed": ("collapsed to uniform", "collapsed to one output"),
    "uniform": ("collapsed to uniform",),
    "one output": ("collapsed to one output",),
}


@dataclass(frozen=True)
class Judgement:
    """What the runs say of a claim: a difference with its interval, or how many runs had the verdict."""

    claim: Claim
    statement: str
    outcome: Outcome
    difference: Estimate | None = None
    having: int | None = None  # runs that ended with the verdict
    runs: int = 0  # of the arm whose verdict is claimed
    reason: str = ""  # what is missing, or how runs ended otherwise

    @property
    def is_shown(self) -> bool:
        """Whether the runs show what was expected."""
        return self.outcome == "as expected"

    @property
    def measured(self) -> str:
        """The number behind the outcome, for people."""
        if self.having is not None:
            low, high = share(self.having, self.runs)
            return f"{self.having} of {self.runs} runs (share {low:.2f} to {high:.2f})"
        return with_interval(self.difference, "+")

    def cells(self) -> list[str]:
        """Texts for people, one for each of CLAIM_HEADERS."""
        seen = self.difference.detectable if self.difference is not None else None
        paper = self.claim.paper
        texts = [
            self.statement,
            self.outcome,
            self.measured,
            f"{seen:.4f}" if seen is not None and not self.is_shown else "",
            self.reason,
            self.claim.claim or "",
            "" if paper is None else paper if isinstance(paper, str) else f"{paper:g}",
        ]
        return [printable(" ".join(text.split())) for text in texts]

    def record(self) -> dict[str, Any]:
        """Values for programs: every digit of the numbers."""
        d = self.difference
        low, high = share(self.having, self.runs) if self.having is not None else (None, None)
        return {
            "expected": self.statement,
            "outcome": self.outcome,
            "claim": self.claim.claim,
            "paper": self.claim.paper,
            "metric": self.claim.metric,
            "n": d.n if d else self.runs or None,
            "difference": d.mean if d else None,
            "difference_interval": d.half if d else None,
            "detectable": d.detectable if d else None,
            "runs_with_verdict": self.having,
            "share_low": low,
            "share_high": high,
            "reason": self.reason,
        }


def claim_notes(judged: Sequence[Judgement]) -> list[str]:
    """Explanations of the claims' numbers, one sentence each."""
    said = []
    if any(one.difference is not None for one in judged):
        said.append(
            "a difference is as expected, or not, if its whole 95 % interval over seeds lies on one side; "
            "else nobody can tell"
        )
    if any(one.cells()[3] for one in judged):
        said.append(SEEN_FROM)
    if any(one.having is not None for one in judged):
        said.append("a verdict is as expected if every run has it, not if none has; share: 95 % interval")
    return said


def judge(study: Study, results: Sequence[ArmResult]) -> list[Judgement]:
    """One judgement for each claim of a study."""
    by_label = {result.arm.label: result for result in results}
    judged = []
    for claim in study.expect:
        about = [by_label[label] for label in claim.labels if label in by_label]
        if claim.metric not in (None, study.metric):
            about = [read_arm(result.arm, str(claim.metric)) for result in about]
        judged.append(_judge(claim, claim.statement(study.metric), about))
    return judged


def _judge(claim: Claim, statement: str, about: Sequence[ArmResult]) -> Judgement:
    if len(about) < len(claim.labels):
        return Judgement(claim, statement, "cannot tell", reason="an arm is not in this study")
    if claim.verdict is not None:
        return _by_verdict(claim, statement, about[0])
    against = about[1].scores if claim.floor is None else _floor_by_seed(claim, about[0])
    difference = paired(about[0].scores, against)
    if difference is None:
        return Judgement(claim, statement, "cannot tell", reason=_missing(claim, about, against))
    if difference.half is None:
        reason = "one seed, so that there is no interval"
        return Judgement(claim, statement, "cannot tell", difference, reason=reason)
    return Judgement(claim, statement, _by_interval(claim, difference), difference, reason=_failed(about))


def _by_verdict(claim: Claim, statement: str, about: ArmResult) -> Judgement:
    """As expected if every run ended so, not if every run ended otherwise; else it cannot be told.

    Such a claim is about the setting, not about luck: where some seeds collapse and others do not, nobody can
    tell what the next one will do.
    """
    assert claim.verdict is not None
    endings = [result.ending for result in about.results.values()]
    wanted = VERDICTS[claim.verdict]
    found = [_has_verdict(ending, wanted) for ending in endings]
    having = sum(one is True for one in found)
    others = Counter(_words(end) for end, one in zip(endings, found, strict=True) if one is not True)
    outcome: Outcome = "cannot tell"
    if endings and None not in found and having in (0, len(found)):
        outcome = "as expected" if having else "not as expected"
    reason = ", ".join(f"{count} {words}" for words, count in others.items())
    if not endings:
        return Judgement(claim, statement, outcome, reason="no run")
    return Judgement(claim, statement, outcome, having=having, runs=len(found), reason=reason)


def _has_verdict(ending: Status, wanted: Sequence[str]) -> bool | None:
    """Whether a run ended with one of some verdicts; None where it is not known.

    That is so of a run that did not come to its end, was too short for a verdict, or learned with signs of a
    collapse.
    """
    if ending.state not in ("finished", "collapsed") or ending.verdict in ("", "warming up"):
        return None
    if ending.doubtful and ending.verdict == "learning":
        return None
    return ending.verdict in wanted


def _words(ending: Status) -> str:
    """How a run ended, in a few words."""
    if ending.state not in ("finished", "collapsed"):
        return f"{ending.state}: {ending.reason}" if ending.reason else ending.state
    return (ending.sentence.partition(":")[0] if ending.doubtful else ending.verdict) or "without a verdict"


def _floor_by_seed(claim: Claim, about: ArmResult) -> dict[int, float]:
    """What an arm is compared with, by seed, where it is known."""
    floor = claim.floor
    if isinstance(floor, str):
        return about.floor(floor, str(claim.metric))
    return {} if floor is None else dict.fromkeys(about.results, floor)


def _by_interval(claim: Claim, difference: Estimate) -> Outcome:
    """The whole interval on the claimed side, or on the other side; else it cannot be told."""
    assert difference.half is not None
    low, high = difference.mean - difference.half, difference.mean + difference.half
    if claim.within is not None:
        # Both one-sided tests at once (Schuirmann, 1987), at half of the usual error.
        return _outcome(
            -claim.within < low and high < claim.within, low > claim.within or high < -claim.within
        )
    if claim.below is not None or (claim.better is not None and claim.mode == "min"):
        low, high = -high, -low
    if claim.by is not None:
        return _outcome(low >= claim.by, high < claim.by)
    return _outcome(low > 0, high <= 0)


def _outcome(shown: bool, refuted: bool) -> Outcome:
    return "as expected" if shown else "not as expected" if refuted else "cannot tell"


def _missing(claim: Claim, about: Sequence[ArmResult], against: Mapping[int, float]) -> str:
    """Why there is no pair to compare."""
    without = [result for result in about if not result.scores]
    if without:
        return "; ".join(f"{result.arm.label}: {_why(result, str(claim.metric))}" for result in without)
    if claim.floor is not None and not against:
        return f"no run says what {claim.metric} is {claim.floor}"
    return "no seed in common"


def _why(result: ArmResult, metric: str) -> str:
    said = ended(result)
    return f"no {metric}" if said == "finished" else said


def _failed(about: Sequence[ArmResult]) -> str:
    """Runs that are missing from a difference."""
    lacking = [result for result in about if len(result.scores) < len(result.results)]
    return "; ".join(f"{result.arm.label}: {ended(result)}" for result in lacking)
