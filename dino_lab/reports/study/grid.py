"""The arms of a study as a grid: every combination of the values of its axes, under the same seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dino_lab.reports.study.results import ArmResult
from dino_lab.runs.study import Study
from dino_lab.spec.literal import inline

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Factor:
    """An axis with its values; the first is that of the baseline, where that is one of the grid."""

    axis: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Grid:
    """Scores of every combination of values under every seed that all of them have."""

    factors: tuple[Factor, ...]
    seeds: tuple[int, ...]
    scores: NDArray[np.float64]  # [seeds, values of the first factor, of the second, ...]
    lacking: tuple[str, ...] = ()  # arms without any finite score


def grid_of(study: Study, results: Sequence[ArmResult]) -> Grid | None:
    """The grid of a study; None where it has not two axes, or not every combination of their values."""
    for arms in (results, [arm for arm in results if arm.arm.label != study.baseline]):
        axes = [axis for axis in study.axes if len({inline(v) for v in _values(axis, arms)}) > 1]
        whole = [arm for arm in arms if all(axis in arm.arm.settings for axis in axes)]
        factors = [Factor(axis, _ordered(study, axis, whole)) for axis in axes]
        count = math.prod(len(factor.values) for factor in factors)
        cells = {_key(arm.arm.settings[axis] for axis in axes): arm for arm in whole}
        if whole and len(axes) > 1 and count == len(cells) == len(whole):
            return _filled(factors, cells)
    return None


def _filled(factors: Sequence[Factor], cells: dict[tuple[str, ...], ArmResult]) -> Grid:
    import numpy as np

    points = list(itertools.product(*(factor.values for factor in factors)))
    arms = [cells[_key(point)] for point in points]
    known = [{seed: score for seed, score in arm.scores.items() if math.isfinite(score)} for arm in arms]
    seeds = sorted(set.intersection(*map(set, known)))
    shape = [len(factor.values) for factor in factors]
    scores = np.array([[found[seed] for found in known] for seed in seeds]).reshape(len(seeds), *shape)
    lacking = tuple(arm.arm.label for arm, found in zip(arms, known, strict=True) if not found)
    return Grid(tuple(factors), tuple(seeds), scores, lacking)


def _values(axis: str, arms: Sequence[ArmResult]) -> list[Any]:
    return [arm.arm.settings[axis] for arm in arms if axis in arm.arm.settings]


def _ordered(study: Study, axis: str, arms: Sequence[ArmResult]) -> tuple[Any, ...]:
    """The values of an axis, each once: that of the baseline, then the others as they come."""
    first = [arm for arm in arms if arm.arm.label == study.baseline]
    return tuple({inline(value): value for value in _values(axis, [*first, *arms])}.values())


def _key(values: Any) -> tuple[str, ...]:
    return tuple(map(inline, values))
