"""The claims of a sweep file, with the arms that they name found among those of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from dino_lab.errors import Loc
from dino_lab.registry import suggest
from dino_lab.runs.claims import ArmName, Claim
from dino_lab.runs.study import listed
from dino_lab.spec.literal import inline
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import mark_at
from dino_lab.spec.problems import Problem
from dino_lab.sweeps.plan.arms import VARIANT
from dino_lab.sweeps.plan.checks import metric_problem
from dino_lab.sweeps.plan.model import Sweep


@dataclass(frozen=True)
class KnownArm:
    """What is known of an arm before it runs."""

    settings: Mapping[str, Any]  # by axis
    spec: Spec


def expected(
    sweep: Sweep, root: yaml.MappingNode, arms: Mapping[str, KnownArm], problems: list[Problem]
) -> tuple[Claim, ...]:
    """The claims with labels of arms and a metric; a problem for each name that is no arm's."""
    claims = []
    for i, claim in enumerate(sweep.expect):
        mine = [
            Problem(mark_at(root, loc), loc, found.problem)
            for step, name in claim.named_arms()
            if (found := _find(name, arms)).problem and (loc := ("expect", i, *step))
        ]
        if not mine:
            claim = claim.renamed(lambda name: _find(name, arms).label)
            mine = _problems_of(claim, ("expect", i), sweep, root, arms)
        problems += mine
        if claim.verdict is None:
            metric = {"metric": claim.metric or sweep.metric, "mode": claim.mode or sweep.mode}
            claim = claim.model_copy(update=metric)
        claims.append(claim)
    return tuple(claims)


@dataclass(frozen=True)
class _Found:
    label: str = ""
    problem: str = ""


def _find(name: ArmName, arms: Mapping[str, KnownArm]) -> _Found:
    """The arm with this label, of this variant, or with these settings."""
    if isinstance(name, str):
        if name in arms:
            return _Found(name)
        matching = [label for label, arm in arms.items() if arm.settings.get(VARIANT) == name]
    else:
        matching = [label for label, arm in arms.items() if _has(arm.settings, name)]
    if len(matching) == 1:
        return _Found(matching[0])
    if matching:
        return _Found(problem=f"names {len(matching)} arms: {listed(matching)}; name one of them")
    return _Found(problem=_unknown(name, arms))


def _has(settings: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    return bool(asked) and all(key in settings and settings[key] == value for key, value in asked.items())


def _unknown(name: ArmName, arms: Mapping[str, KnownArm]) -> str:
    there = f"(there are: {listed(list(arms))})"
    if isinstance(name, str):
        variants = [str(arm.settings[VARIANT]) for arm in arms.values() if VARIANT in arm.settings]
        return f"no arm is called {name!r}{suggest(name, [*arms, *variants])} {there}"
    axes = list(dict.fromkeys(axis for arm in arms.values() for axis in arm.settings))
    for key in name:
        if key not in axes:
            return f"no arm sets {key!r}{suggest(key, axes)} (arms set: {', '.join(axes) or 'nothing'})"
    return f"no arm has {inline(name)} {there}"


def _problems_of(
    claim: Claim, loc: Loc, sweep: Sweep, root: yaml.MappingNode, arms: Mapping[str, KnownArm]
) -> list[Problem]:
    """A metric that an arm lacks, an arm that is compared with itself, a floor of what is no score."""
    if len(claim.labels) == 2 and claim.labels[0] == claim.labels[1]:
        return [Problem(mark_at(root, loc), loc, f"compares {claim.labels[0]} with itself")]
    if claim.metric is not None:
        specs = [arms[label].spec for label in claim.labels]
        found = metric_problem((*loc, "metric"), claim.metric, root, specs)
        if found is not None:
            return [found]
    if isinstance(claim.floor, str) and "." not in (metric := claim.metric or sweep.metric):
        where = (*loc, next(key for key in ("above", "below", "near") if getattr(claim, key) is not None))
        message = (
            f"{metric} has no value that is {claim.floor}: only scores of evaluators, such as knn.20nn, have"
        )
        return [Problem(mark_at(root, where), where, message)]
    return []
