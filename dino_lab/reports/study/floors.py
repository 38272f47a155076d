"""What needs no learning, beside the arms of a study: chance, raw pixels, and the network before training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import get_args

from dino_lab.reports.study.estimate import Estimate, estimate, paired
from dino_lab.reports.study.results import UNTRAINED, ArmResult
from dino_lab.reports.study.table import ArmLine, reading
from dino_lab.runs.claims import Floor
from dino_lab.runs.study import Study, listed

_EQUAL = 1e-6  # scores of one network, computed in another order


def floor_lines(study: Study, results: Sequence[ArmResult]) -> list[ArmLine]:
    """A row for each floor that runs know; they are paired with the baseline as an arm is."""
    baseline = next((arm.scores for arm in results if arm.arm.label == study.baseline), {})
    known = [one.ending.floors.get(study.metric, {}) for arm in results for one in arm.results.values()]
    names = dict.fromkeys((*get_args(Floor), *(name for floors in known for name in floors)))
    lines = []
    for name in names:
        of_arms = [arm.floor(name, study.metric) for arm in results]
        by_seed = {seed: [one[seed] for one in of_arms if seed in one] for one in of_arms for seed in one}
        if by_seed:
            lines.append(_line(study, name, by_seed, baseline))
    return lines


def _line(study: Study, name: str, by_seed: dict[int, list[float]], baseline: dict[int, float]) -> ArmLine:
    values = {seed: statistics.fmean(of_arms) for seed, of_arms in by_seed.items()}
    constant = name != UNTRAINED and max(values.values()) - min(values.values()) < _EQUAL
    difference = paired(values, baseline) if baseline else None
    return ArmLine(
        label=name,
        settings=dict.fromkeys(study.axes),
        planned=None if constant else len(values),
        score=estimate(list(values.values())[:1] if constant else list(values.values())),
        difference=difference,
        reading=reading(study, difference) if difference is not None else "",
        ended="",
        rate=None,
        hours=None,
    )


def floor_warnings(study: Study, results: Sequence[ArmResult], floors: Sequence[ArmLine]) -> list[str]:
    """A sentence where no arm is better than a floor, if that is known of every arm that has a score."""
    said = []
    scored = [arm for arm in results if arm.scores]
    for floor in floors:
        gains = [gain(study, arm, floor.label) for arm in scored]
        if gains and all(above is not None and not is_better(study, above) for above in gains):
            score = f"{floor.score.mean:.4f}" if floor.score is not None else ""
            said.append(f"no arm is seen to be better than {floor.label} ({study.metric} {score})")
    return said


def floor_notes(study: Study, results: Sequence[ArmResult], floors: Sequence[ArmLine]) -> list[str]:
    """Which arms are not better than untrained, where others are; and whether arms begin differently."""
    if not any(floor.label == UNTRAINED for floor in floors):
        return []
    gains = {arm.arm.label: gain(study, arm, UNTRAINED) for arm in results if arm.scores}
    below = [label for label, above in gains.items() if above is not None and not is_better(study, above)]
    said = []
    if below and len(below) < len(gains):
        said.append(f"not better than before training, seed by seed: {listed(below)}")
    begins = {arm.arm.label: arm.floor(UNTRAINED, study.metric) for arm in results}
    means = {label: statistics.fmean(scores.values()) for label, scores in begins.items() if scores}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    if means[high] - means[low] > _EQUAL:
        said.append(
            f"untrained: mean over arms, whose networks differ: from {means[low]:.4f} ({low}) to "
            f"{means[high]:.4f} ({high})"
        )
    return said


def gain(study: Study, arm: ArmResult, floor: str) -> Estimate | None:
    """An arm's score minus a floor, seed by seed."""
    return paired(arm.scores, arm.floor(floor, study.metric))


def is_better(study: Study, above: Estimate) -> bool:
    """Whether a difference to a floor excludes 0 on the better side; of one seed there is no interval."""
    side = above.mean > 0 if study.mode == "max" else above.mean < 0
    return side and (above.half is None or above.excludes_zero)
