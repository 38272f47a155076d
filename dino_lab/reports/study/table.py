"""The table of a study: one line for each arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dino_lab.reports.study.estimate import CONFIDENCE, Estimate, estimate, paired
from dino_lab.reports.study.results import ArmResult
from dino_lab.runs.study import Study

HEADERS = ("arm", "seeds", "score", "median", "sd", "difference", "reading", "ended", "images/s", "hours")


@dataclass(frozen=True)
class ArmLine:
    """The results of one arm."""

    label: str
    settings: dict[str, Any]
    planned: int
    score: Estimate | None
    difference: Estimate | None
    reading: str
    ended: str
    rate: float | None
    hours: float

    def cells(self) -> list[str]:
        """Texts for people, one for each of HEADERS."""
        s = self.score
        return [
            self.label,
            f"{s.n if s else 0}" if s and s.n == self.planned else f"{s.n if s else 0} of {self.planned}",
            _with_interval(s, ""),
            f"{s.median:.4f}" if s else "",
            f"{s.deviation:.4f}" if s and s.deviation is not None else "",
            _with_interval(self.difference, "+"),
            self.reading,
            self.ended,
            f"{self.rate:.0f}" if self.rate is not None else "",
            f"{self.hours:.2f}",
        ]

    def record(self) -> dict[str, Any]:
        """Values for programs: every digit of the numbers, settings as the sweep file has them."""
        s, d = self.score, self.difference
        return {
            "arm": self.label,
            **self.settings,
            "planned": self.planned,
            "n": s.n if s else 0,
            "mean": s.mean if s else None,
            "interval": s.half if s else None,
            "median": s.median if s else None,
            "standard_deviation": s.deviation if s else None,
            "difference": d.mean if d else None,
            "difference_interval": d.half if d else None,
            "reading": self.reading,
            "ended": self.ended,
            "images_per_second": self.rate,
            "hours": self.hours,
        }


def lines(study: Study, results: Sequence[ArmResult]) -> list[ArmLine]:
    """One line for each arm, in the order of the study."""
    baseline = next((arm.scores for arm in results if arm.arm.label == study.baseline), {})
    return [_line(study, arm, baseline) for arm in results]


def _line(study: Study, result: ArmResult, baseline: dict[int, float]) -> ArmLine:
    is_baseline = result.arm.label == study.baseline
    difference = None if is_baseline or not baseline else paired(result.scores, baseline)
    rates = [r.rate for r in result.results.values() if r.rate is not None]
    rate = estimate(rates)
    return ArmLine(
        label=result.arm.label,
        settings={axis: result.arm.settings.get(axis) for axis in study.axes},
        planned=len(result.results),
        score=estimate(list(result.scores.values())),
        difference=difference,
        reading="baseline" if is_baseline else _reading(study, difference),
        ended=_ended(result),
        rate=rate.median if rate else None,
        hours=sum(r.ending.seconds for r in result.results.values()) / 3600,
    )


def _reading(study: Study, difference: Estimate | None) -> str:
    if difference is None:
        return "no pair to compare"
    if difference.half is None:
        return "one seed: not known"
    if not difference.excludes_zero:
        return "no difference seen"
    return "better" if (difference.mean > 0) == (study.mode == "max") else "worse"


def _ended(result: ArmResult) -> str:
    """Endings other than finished and learning, with how many runs and the first reason; else finished."""
    found: Counter[str] = Counter()
    for one in result.results.values():
        ending = one.ending
        if ending.verdict.startswith("collapsed"):
            found[ending.verdict] += 1
        elif ending.state != "finished":
            found[f"{ending.state}: {ending.reason}" if ending.reason else ending.state] += 1
    return "; ".join(f"{count} {words}" for words, count in found.items()) or "finished"


def notes(study: Study, found: Sequence[ArmLine]) -> list[str]:
    """Explanations of the numbers, one sentence each."""
    seeds = max((line.planned for line in found), default=0)
    percent = f"{CONFIDENCE:.0%}".replace("%", " %")
    said = [f"score: {study.metric}, mean over seeds ± {percent} interval (Student's t)"]
    if study.baseline is not None:
        said.append(
            f"difference: to {study.baseline}, seed by seed ± {percent} interval of its mean; seeds share "
            "first weights, order and crops wherever shapes allow"
        )
    compared = sum(line.difference is not None and line.difference.half is not None for line in found)
    if compared > 1:
        chance = compared * (1 - CONFIDENCE)
        said.append(
            f"{compared} arms are compared at {percent} each: about {chance:.1f} of them would look "
            "different by chance alone"
        )
    if 1 < seeds < 5:
        said.append(f"{seeds} seeds: the intervals are wide and assume that scores scatter normally")
    return said


def _with_interval(value: Estimate | None, sign: str) -> str:
    if value is None:
        return ""
    half = "" if value.half is None else f" ± {value.half:.4f}"
    return f"{value.mean:{sign}.4f}{half}"
