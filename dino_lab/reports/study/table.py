"""The table of a study: one line for each arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dino_lab.reports.study.estimate import CONFIDENCE, POWER, Estimate, estimate, paired
from dino_lab.reports.study.results import UNTRAINED, ArmResult
from dino_lab.runs.study import Study

NONE_SEEN = "no difference seen"
HEADERS = ("arm", "seeds", "score", "median", "sd", "difference", "reading", "ended", "images/s", "hours")


@dataclass(frozen=True)
class ArmLine:
    """The results of one arm."""

    label: str
    settings: dict[str, Any]
    planned: int | None  # seeds; None of a number that has none, such as chance
    score: Estimate | None
    difference: Estimate | None
    reading: str
    ended: str
    rate: float | None
    hours: float | None  # of a floor there is none
    gain: Estimate | None = None  # difference to the score before training

    def cells(self) -> list[str]:
        """Texts for people, one for each of HEADERS."""
        s = self.score
        n = s.n if s else 0
        return [
            self.label,
            "" if self.planned is None else f"{n}" if n == self.planned and n else f"{n} of {self.planned}",
            with_interval(s, ""),
            f"{s.median:.4f}" if s else "",
            f"{s.deviation:.4f}" if s and s.deviation is not None else "",
            with_interval(self.difference, "+"),
            self.reading,
            self.ended,
            f"{self.rate:.0f}" if self.rate is not None else "",
            f"{self.hours:.2f}" if self.hours is not None else "",
        ]

    def record(self) -> dict[str, Any]:
        """Values for programs: every digit of the numbers, settings as the sweep file has them."""
        s, d, gain = self.score, self.difference, self.gain
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
            "detectable": d.detectable if d else None,
            "above_untrained": gain.mean if gain else None,
            "above_untrained_interval": gain.half if gain else None,
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
        reading="baseline" if is_baseline else reading(study, difference),
        ended=ended(result),
        rate=rate.median if rate else None,
        hours=sum(r.ending.seconds for r in result.results.values()) / 3600,
        gain=paired(result.scores, result.floor(UNTRAINED, study.metric)),
    )


def reading(study: Study, difference: Estimate | None) -> str:
    """What the interval of a difference says: better, worse, or no difference seen."""
    if difference is None:
        return "no pair to compare"
    if difference.half is None:
        return "one seed: not known"
    if not difference.excludes_zero:
        return NONE_SEEN
    return "better" if (difference.mean > 0) == (study.mode == "max") else "worse"


def ended(result: ArmResult) -> str:
    """Endings other than finished and learning, with how many runs and the first reason; else finished."""
    found: Counter[str] = Counter()
    for one in result.results.values():
        ending = one.ending
        if ending.verdict.startswith("collapsed"):
            found[ending.verdict] += 1
        elif ending.state != "finished":
            found[f"{ending.state}: {ending.reason}" if ending.reason else ending.state] += 1
    return "; ".join(f"{count} {words}" for words, count in found.items()) or "finished"


def filled(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows without the columns that are empty in every row."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in rows)]
    return [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]


def percent(share: float) -> str:
    """`95 %`."""
    return f"{100 * share:.0f} %"


def notes(study: Study, found: Sequence[ArmLine]) -> list[str]:
    """Explanations of the numbers, one sentence each."""
    seeds = max((line.planned or 0 for line in found), default=0)
    confidence = percent(CONFIDENCE)
    said = [f"score: {study.metric}, mean over seeds ± {confidence} interval (Student's t)"]
    if study.baseline is not None:
        said.append(
            f"difference: to {study.baseline}, seed by seed ± {confidence} interval of its mean; seeds share "
            "first weights, order and crops wherever shapes allow"
        )
    compared = sum(line.difference is not None and line.difference.half is not None for line in found)
    if compared > 1:
        chance = compared * (1 - CONFIDENCE)
        said.append(
            f"{compared} arms are compared at {confidence} each: about {chance:.1f} of them would look "
            "different by chance alone"
        )
    said += _power(found)
    if 1 < seeds < 5:
        said.append(f"{seeds} seeds: the intervals are wide and assume that scores scatter normally")
    return said


def _power(found: Sequence[ArmLine]) -> list[str]:
    """How large a difference would have been seen where none was."""
    seen = [
        (line.difference.detectable, line.label)
        for line in found
        if line.reading == NONE_SEEN and line.difference is not None and line.difference.detectable
    ]
    if not seen:
        return []
    ends = dict.fromkeys((min(seen), max(seen)))
    values = " to ".join(f"{value:.4f} ({label})" for value, label in ends)
    return [f"{NONE_SEEN}: with {percent(POWER)} power (paired t test) so many seeds show one of {values}"]


def with_interval(value: Estimate | None, sign: str) -> str:
    """`0.5000 ± 0.0200`; `sign` is that of Python's format."""
    if value is None:
        return ""
    half = "" if value.half is None else f" ± {value.half:.4f}"
    return f"{value.mean:{sign}.4f}{half}"
