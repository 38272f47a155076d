"""Intervals against tabulated quantiles and a naive statement."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from dino_lab.reports.study.estimate import estimate, paired, student


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062047364), (2, 4.3026527297), (3, 3.1824463053), (9, 2.2621571628), (30, 2.0422724563)],
)
def test_students_quantile_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=1e-8)


def test_a_mean_has_its_interval() -> None:
    found = estimate([1.0, 2.0, 6.0])
    assert found is not None
    assert (found.n, found.mean, found.median) == (3, 3.0, 2.0)
    assert found.half == pytest.approx(4.3026527297 * statistics.stdev([1, 2, 6]) / math.sqrt(3))
    assert not found.excludes_zero
    one = estimate([0.5])
    assert one is not None
    assert (one.mean, one.deviation, one.half, one.excludes_zero) == (0.5, None, None, False)
    assert estimate([]) is None


def test_pairs_take_out_what_the_seeds_share() -> None:
    baseline = {0: 0.1, 1: 0.5, 2: 0.9}
    found = paired({0: 0.2, 1: 0.61, 2: 0.99, 3: 7.0}, baseline)
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert found.half is not None
    assert found.half < 0.03
    assert found.excludes_zero


def test_the_interval_covers_as_often_as_it_says() -> None:
    source = random.Random(0)
    trials = [estimate([source.gauss(0, 1) for _ in range(4)]) for _ in range(2000)]
    covered = sum(not found.excludes_zero for found in trials if found is not None) / len(trials)
    assert covered == pytest.approx(0.95, abs=0.015)
