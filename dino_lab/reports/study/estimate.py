"""Means of few values, and how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
_PANELS = 2000  # of Simpson's rule


@dataclass(frozen=True)
class Estimate:
    """Mean, median and standard deviation of n values; the interval is the mean plus and minus `half`."""

    n: int
    mean: float
    median: float
    deviation: float | None  # of one value there is none, nor an interval
    half: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean with Student's interval: t(0.975, n - 1) * s / sqrt(n)."""
    n = len(values)
    if n == 0:
        return None
    deviation = statistics.stdev(values) if n > 1 else None
    half = None if deviation is None else student(n - 1) * deviation / math.sqrt(n)
    return Estimate(n, statistics.fmean(values), statistics.median(values), deviation, half)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Estimate | None:
    """The difference to the baseline, seed by seed, over the seeds that both have."""
    return estimate([values[seed] - baseline[seed] for seed in values if seed in baseline])


@cache
def student(freedom: int) -> float:
    """The quantile of Student's t that bounds the middle 95 %.

    With t = sqrt(v) tan(a) the density becomes cos(a)^(v - 1), so the mass within is a ratio of two finite
    integrals.
    """
    whole = _integral(freedom, math.pi / 2)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _integral(freedom, middle) < CONFIDENCE * whole else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _integral(freedom: int, end: float) -> float:
    """Of cos(a)^(v - 1) from 0 to `end`, by Simpson's rule."""
    step = end / _PANELS
    heights = [math.cos(i * step) ** (freedom - 1) for i in range(_PANELS + 1)]
    return step / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
