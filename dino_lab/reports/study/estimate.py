"""Means of a few values, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


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
    """The quantile t(0.975, v) of Student's distribution, which bounds the middle 95 %."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
