"""What the runs of a study say: the last score of each, its curve, its speed and how it ended."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, read_status
from dino_lab.runs.study import Arm, Study

UNTRAINED = "untrained"  # the floor that is the score before training


@dataclass(frozen=True)
class Result:
    """One run."""

    ending: Status
    score: float | None
    curve: tuple[tuple[float, float], ...]  # epoch and metric
    rate: float | None  # images per second, median of its rows


@dataclass(frozen=True)
class ArmResult:
    """One arm: its results by seed."""

    arm: Arm
    results: dict[int, Result]

    @property
    def scores(self) -> dict[int, float]:
        """By seed, where there is one."""
        return {seed: r.score for seed, r in self.results.items() if r.score is not None}

    def floor(self, name: str, metric: str) -> dict[int, float]:
        """What a score is without learning, by seed, where it is known: untrained, raw pixels, chance."""
        found = {}
        for seed, result in self.results.items():
            before = {UNTRAINED: result.ending.scores_before.get(metric)}
            value = (result.ending.floors.get(metric, {}) | before).get(name)
            if value is not None:
                found[seed] = value
        return found


def read_results(study: Study) -> list[ArmResult]:
    """All arms in their order; a run that is not there is one that has not run."""
    return [read_arm(arm, study.metric) for arm in study.arms]


def read_arm(arm: Arm, metric: str) -> ArmResult:
    """All runs of an arm."""
    return ArmResult(arm, {seed: read_result(folder, metric) for seed, folder in arm.folders.items()})


def read_result(folder: Path, metric: str) -> Result:
    """One run folder."""
    rows = RunFolder(folder).rows()
    ending = read_status(folder)
    curve = tuple((row["epoch"], row[metric]) for row in rows if metric in row)
    rates = [row["images_per_second"] for row in rows if "images_per_second" in row]
    score = curve[-1][1] if curve and ending.is_result else None
    return Result(ending, score, curve, statistics.median(rates) if rates else None)
