"""Mistakes in a sweep file of valid specs: values without effect, unknown metrics, seeds said twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from dino_lab.errors import Loc
from dino_lab.registry import suggest
from dino_lab.spec.file import Document
from dino_lab.spec.merge import Override
from dino_lab.spec.model import Spec
from dino_lab.spec.nodes import child, data, mark_at
from dino_lab.spec.problems import Problem
from dino_lab.sweeps.plan.arms import Base, Point, pairs
from dino_lab.sweeps.plan.model import Sweep

LARGEST_SEED = 2**32 - 1
# Numbers of the rows that any method may have; which there are is seen once a step was measured.
ROW_NUMBERS = (
    *("loss", "entropy", "kl", "effective_rank", "feature_spread", "outputs_in_use", "center_norm"),
    *("accuracy", "gradient_norm", "images_per_second", "data_wait"),
)


def unused_overrides(base: Base, documents: Sequence[Document]) -> list[Problem]:
    """A problem for each override of the base that every arm replaces."""
    alone = base.with_point(Point(), [])
    return [
        Problem(one.mark, (one.key,), "has no effect, because every arm and the baseline replace it")
        for one in base.overrides
        if is_effective(alone, one) and not any(is_effective(document.root, one) for document in documents)
    ]


def metric_problems(sweep: Sweep, root: yaml.MappingNode, specs: Sequence[Spec]) -> list[Problem]:
    """Metrics that the evaluators of a spec, or the rows of any method, do not have."""
    asked: list[tuple[Loc, str]] = [(("metric",), sweep.metric)]
    if sweep.scheduler is not None and sweep.scheduler.metric is not None:
        asked.append((("scheduler", "metric"), sweep.scheduler.metric))
    found = [metric_problem(loc, metric, root, specs) for loc, metric in asked]
    return [problem for problem in found if problem is not None]


def metric_problem(loc: Loc, metric: str, root: yaml.MappingNode, specs: Sequence[Spec]) -> Problem | None:
    """The problem of a metric that the first of some specs lacks; None where all have it."""
    evaluator, dot, _ = metric.partition(".")
    for spec in specs:
        names = [params.name for params in spec.evaluators]
        if evaluator in names if dot else metric in ROW_NUMBERS:
            continue
        there = ", ".join(names) or "none"
        message = (
            f"no evaluator of {spec.name} is called {evaluator!r} (there are: {there})"
            if dot
            else f"no row has the number {metric!r}{suggest(metric, list(ROW_NUMBERS))}; a score is "
            f"written as evaluator.score, and the evaluators are: {there}"
        )
        return Problem(mark_at(root, loc), loc, message)
    return None


def evaluation_problems(root: yaml.MappingNode, specs: Sequence[Spec]) -> list[Problem]:
    """Arms that would be one run, scored on the images of the last of them."""
    seen: dict[tuple[str, str], Spec] = {}
    for spec in specs:
        first = seen.setdefault((spec.name, spec.hash), spec)
        if first.evaluate_on != spec.evaluate_on:
            message = (
                "arms that differ in evaluate_on alone are one run; `dino-lab eval RUN --with FILE` scores a "
                "run on other images"
            )
            return [Problem(root.start_mark, (), message)]
    return []


def seed_problems(sweep: Sweep, root: yaml.MappingNode, specs: Sequence[Spec]) -> list[Problem]:
    """Seeds that are said twice, or that count beyond the largest."""
    if sweep.seeds == 1:
        return []
    sections = [(name, child(root, name)) for name in ("grid", "space", "baseline")]
    mappings: list[tuple[Loc, yaml.Node]] = [
        ((name,), pair[1]) for name, pair in sections if pair is not None
    ]
    mappings += [(("variants", key.value), value) for key, value in pairs(root, "variants")]
    problems = []
    for loc, mapping in mappings:
        seed = child(mapping, "seed")
        if seed is not None:
            message = "`seeds` sets the seed of every arm; leave out one of the two"
            problems.append(Problem(seed[0].start_mark, (*loc, "seed"), message))
    first = max((spec.seed for spec in specs), default=0)
    if isinstance(sweep.seeds, int) and first + sweep.seeds > LARGEST_SEED + 1:
        message = (
            f"{sweep.seeds} seeds, counted from the base's seed {first}, exceed the largest, {LARGEST_SEED}; "
            "write a list of seeds, or a smaller seed in the base"
        )
        problems.append(Problem(mark_at(root, ("seeds",)), ("seeds",), message))
    return problems


def replaced_values(point: Point, root: yaml.MappingNode) -> list[Problem]:
    """A problem for each value of an arm that another override of the arm replaces in its spec."""
    problems = []
    for override in point.overrides:
        if not is_effective(root, override):
            others = [one for one in point.overrides if one is not override and one.touches(override)]
            by = f"{others[-1].key!r} of the same arm" if others else "another key"
            message = f"has no effect, because {by} replaces it; leave out one of the two"
            problems.append(Problem(override.mark, (override.key,), message))
    return problems


def is_effective(root: yaml.Node, override: Override) -> bool:
    """Whether the value at an override's key is that of the override."""
    node: yaml.Node = root
    for step in override.path:
        number = isinstance(node, yaml.SequenceNode) and step.isdecimal()
        pair = child(node, int(step) if number else step)
        if pair is None:
            return False
        node = pair[1]
    return _contains(data(node), data(override.value))


def _contains(found: Any, given: Any) -> bool:
    if isinstance(given, dict):
        return isinstance(found, dict) and all(
            key in found and _contains(found[key], value) for key, value in given.items()
        )
    return bool(found == given)
