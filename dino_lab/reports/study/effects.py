"""Main effects of the axes of a grid, and whether the effect of one depends on another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dino_lab.reports.study.estimate import CONFIDENCE, POWER, Estimate, estimate
from dino_lab.reports.study.grid import Factor, Grid, grid_of
from dino_lab.reports.study.results import ArmResult
from dino_lab.reports.study.table import NONE_SEEN, percent, reading, with_interval
from dino_lab.runs.study import Study, listed, short_key, short_value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]

EFFECT_HEADERS = ("effect", "difference", "reading", "test")
SMALL = (
    0.5  # share of an axis's largest effect; if another axis changes it by less, it does not depend on that
)
Answer = Literal["yes", "no", "cannot tell"]


@dataclass(frozen=True)
class FTest:
    """An F statistic with its degrees of freedom, and the chance of one at least as large by luck."""

    statistic: float
    between: float
    within: float
    p: float

    def __str__(self) -> str:
        chance = f"= {self.p:.3f}" if self.p >= 0.001 else "< 0.001"
        return f"F({self.between:.3g}, {self.within:.3g}) = {self.statistic:.4g}, p {chance}"


@dataclass(frozen=True)
class Contrast:
    """A difference between two values of an axis, or how another axis changes it, over seeds."""

    name: str
    difference: Estimate


@dataclass(frozen=True)
class Effect:
    """What an axis does on average over the others, or how two axes change each other's effect."""

    axes: tuple[str, ...]  # one, or two
    test: FTest
    contrasts: tuple[Contrast, ...]  # to the values of the baseline
    largest: float  # of all contrasts, without sign
    bound: float  # the largest that the intervals of all contrasts allow

    @property
    def is_seen(self) -> bool:
        """Whether an effect so large is rarer by luck than the confidence allows."""
        return self.test.p < 1 - CONFIDENCE


@dataclass(frozen=True)
class Dependence:
    """Whether the effect of one axis depends on another."""

    axis: str
    on: str
    answer: Answer
    because: str


@dataclass(frozen=True)
class Effects:
    """All effects of a grid; `missing` says why there are none, and is empty where there is no grid."""

    study: Study
    seeds: int = 0
    effects: tuple[Effect, ...] = ()
    dependences: tuple[Dependence, ...] = ()
    missing: str = ""

    def rows(self) -> list[list[str]]:
        """Texts for people, one for each of EFFECT_HEADERS; an effect with one contrast is one row."""
        rows = []
        for effect in self.effects:
            name = " x ".join(short_key(axis, self.study.axes) for axis in effect.axes)
            if len(effect.contrasts) > 1:
                rows.append([name, "", "", str(effect.test)])
            for one in effect.contrasts:
                test = str(effect.test) if len(effect.contrasts) == 1 else ""
                said = self._reading(effect, one)
                rows.append([one.name, with_interval(one.difference, "+"), said, test])
        return rows

    def _reading(self, effect: Effect, one: Contrast) -> str:
        if len(effect.axes) == 1:
            return reading(self.study, one.difference)
        return "differs" if one.difference.excludes_zero else NONE_SEEN

    def records(self) -> list[dict[str, Any]]:
        """Values for programs, a row for each contrast."""
        answers: dict[tuple[str, ...], Answer] = {(one.axis, one.on): one.answer for one in self.dependences}
        return [
            {
                "axis": effect.axes[0],
                "by": effect.axes[1] if len(effect.axes) > 1 else None,
                "contrast": one.name,
                "n": one.difference.n,
                "difference": one.difference.mean,
                "difference_interval": one.difference.half,
                "detectable": one.difference.detectable,
                "f": effect.test.statistic,
                "freedom_between": effect.test.between,
                "freedom_within": effect.test.within,
                "p": effect.test.p,
                "axis_depends": answers.get(effect.axes) if len(effect.axes) > 1 else None,
                "by_depends": answers.get(effect.axes[::-1]) if len(effect.axes) > 1 else None,
            }
            for effect in self.effects
            for one in effect.contrasts
        ]

    def sentences(self) -> list[str]:
        """Each question with its answer."""
        said = []
        asked: set[tuple[str, str]] = set()
        for one in self.dependences:
            if one.answer == "yes" and (one.on, one.axis) in asked:
                continue  # a dependence that is seen is one both ways
            asked.add((one.axis, one.on))
            axis, on = (short_key(name, self.study.axes) for name in (one.axis, one.on))
            both = ", and the other way round" if one.answer == "yes" else ""
            said.append(f"does the effect of {axis} depend on {on}{both}? {one.answer}: {one.because}")
        return said

    def notes(self) -> list[str]:
        """Explanations of the numbers, one sentence each."""
        if not self.effects:
            return [f"effects of the axes: {self.missing}"] if self.missing else []
        return [
            f"effect of an axis: mean over the other axes, seed by seed, over {self.seeds} seeds that every "
            f"combination has, ± {percent(CONFIDENCE)} interval; of two axes: the difference on the "
            "first, at one value of the second minus at the other",
            "test: F of repeated measures, a seed being one subject, degrees of freedom after Greenhouse and "
            "Geisser (1959); single rows are not corrected for their number",
        ]


def effects_of(study: Study, results: Sequence[ArmResult]) -> Effects:
    """Main effects of a grid of two or more axes, and every interaction of two."""
    grid = grid_of(study, results)
    if grid is None:
        return Effects(study)
    if grid.lacking:
        return Effects(study, missing=f"not known while these have no score: {listed(grid.lacking)}")
    if len(grid.seeds) < 2:
        return Effects(study, missing="one seed, so that there are no intervals")
    mains = [_effect(study, grid, (i,)) for i in range(len(grid.factors))]
    pairs = list(itertools.combinations(range(len(grid.factors)), 2))
    interactions = [_effect(study, grid, pair) for pair in pairs]
    dependences = [
        _dependence(study, mains[of], mains[on], both)
        for pair, both in zip(pairs, interactions, strict=True)
        for of, on in (pair, pair[::-1])
    ]
    return Effects(study, len(grid.seeds), (*mains, *interactions), tuple(dependences))


def _effect(study: Study, grid: Grid, about: tuple[int, ...]) -> Effect:
    factors = [grid.factors[i] for i in about]
    scores = _averaged(grid.scores, about)
    every = [estimate(values) for _, values in _contrasts(study, factors, scores, every=True)]
    contrasts = tuple(
        Contrast(name, difference)
        for name, values in _contrasts(study, factors, scores, every=False)
        if (difference := estimate(values)) is not None
    )
    known = [one for one in every if one is not None]
    return Effect(
        tuple(factor.axis for factor in factors),
        f_test(scores),
        contrasts,
        max(abs(one.mean) for one in known),
        max(abs(one.mean) + (one.half or 0.0) for one in known),
    )


def _averaged(scores: Scores, about: Sequence[int]) -> Scores:
    """Scores [seeds, values of some factors]: the mean over all values of the others."""
    others = tuple(i + 1 for i in range(scores.ndim - 1) if i not in about)
    averaged: Scores = scores.mean(axis=others) if others else scores
    return averaged


def _contrasts(
    study: Study, factors: Sequence[Factor], scores: Scores, *, every: bool
) -> Iterator[tuple[str, list[float]]]:
    """Name, and the value under every seed, of differences on each factor: to its first value, or all."""
    pairs = [
        list(itertools.combinations(range(len(factor.values)), 2))
        if every
        else [(0, i) for i in range(1, len(factor.values))]
        for factor in factors
    ]
    for chosen in itertools.product(*pairs):
        values = scores
        for first, second in reversed(chosen):
            values = values[..., second] - values[..., first]
        names = [
            f"{short_key(factor.axis, study.axes)}: {short_value(factor.values[second])} - "
            f"{short_value(factor.values[first])}"
            for factor, (first, second) in zip(factors, chosen, strict=True)
        ]
        yield "; ".join(names), values.tolist()


def f_test(scores: Scores) -> FTest:
    """The F test of one factor, or of the interaction of several: scores [seeds, values of each factor].

    Repeated measures with seeds as subjects: z_s are q orthonormal contrasts of the scores under seed s, with
    mean m and covariance S over n seeds; F = n |m|^2 / tr S with q and (n - 1) q degrees of freedom, both
    times e = (tr S)^2 / (q tr S^2), which corrects for unequal variances (Greenhouse and Geisser, 1959).
    """
    import numpy as np
    from scipy.linalg import helmert
    from scipy.special import fdtrc

    n, z = len(scores), scores
    for axis in range(1, scores.ndim):
        contrasted = np.tensordot(helmert(scores.shape[axis]), z, (1, axis))
        z = np.moveaxis(contrasted, 0, axis)
    z = z.reshape(n, -1)  # [n, q]
    q, mean = z.shape[1], z.mean(0)
    covariance = np.atleast_2d(np.cov(z, rowvar=False))
    trace, size = float(np.trace(covariance)), float(mean @ mean)
    if trace <= _ROUNDING:  # every seed says the same
        return FTest(
            *((float("inf"), q, (n - 1) * q, 0.0) if size > _ROUNDING else (0.0, q, (n - 1) * q, 1.0))
        )
    correction = trace**2 / (q * float((covariance**2).sum()))
    between, within = q * correction, (n - 1) * q * correction
    statistic = n * size / trace
    return FTest(statistic, between, within, float(fdtrc(between, within, statistic)))


_ROUNDING = 1e-24  # square of a difference that is rounding


def _dependence(study: Study, of: Effect, on: Effect, both: Effect) -> Dependence:
    """Yes if the interaction is seen; no if its intervals allow little beside an effect that is seen."""
    axes = of.axes[0], on.axes[0]
    if both.is_seen:
        largest = max(both.contrasts, key=lambda one: abs(one.difference.mean))
        change = with_interval(largest.difference, "+")
        because = f"{both.test}; the largest change is {change} ({largest.name})"
        return Dependence(*axes, "yes", because)
    if of.is_seen and both.bound < SMALL * of.largest:
        least = f"at most {both.bound:.4f}, less than half of its largest effect, {of.largest:.4f}"
        return Dependence(*axes, "no", f"it changes by {least}")
    seen = [one.difference.detectable for one in both.contrasts if one.difference.detectable is not None]
    power = f"; with {percent(POWER)} power so many seeds show a change of {max(seen):.4f}" if seen else ""
    allowed = f"it may change by up to {both.bound:.4f}, and its largest effect is {of.largest:.4f}"
    return Dependence(*axes, "cannot tell", f"{allowed}{power}")
