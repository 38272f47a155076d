"""Means of a few values, with confidence intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95
POWER = 0.8  # chance to see a difference, at which it counts as one that would have been seen


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

    @property
    def detectable(self) -> float | None:
        """The true difference that would have been seen with a chance of POWER, in units of the values.

        The standard deviation of the n values stands for the true one.
        """
        return None if self.deviation is None else effect_size(self.n) * self.deviation


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


def share(successes: int, n: int) -> tuple[float, float]:
    """The interval of a share, `successes` of `n` > 0 (Clopper and Pearson, 1934)."""
    from scipy.special import betaincinv

    tail = (1 - CONFIDENCE) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


@cache
def effect_size(n: int) -> float:
    """The mean, in standard deviations, whose interval over n > 1 values lies above 0 with a chance of POWER.

    The chance is that of T > t(0.975, n - 1), where T has the noncentral t distribution with n - 1 degrees of
    freedom and noncentrality sqrt(n) times the mean (Cohen, 1988, Sec. 2). An interval below 0 is not
    counted: its chance is less than 1e-5.
    """
    from scipy.special import nctdtrinc

    return float(nctdtrinc(n - 1, 1 - POWER, student(n - 1))) / math.sqrt(n)


@cache
def student(freedom: int) -> float:
    """The quantile t(0.975, v) of Student's distribution, which bounds the middle 95 %."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
