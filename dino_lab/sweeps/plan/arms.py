"""The arms of a sweep file, as overrides of the base."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dino_lab.runs.study import short_key, short_value
from dino_lab.spec.merge import Override, lay_over, override_at
from dino_lab.spec.nodes import child, data
from dino_lab.spec.problems import Problem
from dino_lab.sweeps.plan.model import Sweep

VARIANT = "variant"  # the axis whose values are the names of variants


@dataclass(frozen=True)
class Point:
    """What one arm changes in the base; `settings` are its values on the axes of the table."""

    overrides: tuple[Override, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Point) -> Point:
        return Point(self.overrides + other.overrides, self.settings | other.settings)


@dataclass(frozen=True)
class Base:
    """The spec that is changed, and what `set` and settings change of it in every trial."""

    root: yaml.MappingNode
    file: Path
    overrides: tuple[Override, ...] = ()

    def with_point(self, point: Point, problems: list[Problem]) -> yaml.MappingNode:
        """The nodes of one arm's spec."""
        return lay_over(self.root, [*self.overrides, *point.overrides], problems)


def overrides_in(node: yaml.Node | None, problems: list[Problem]) -> tuple[Override, ...]:
    """The overrides in a mapping of dotted keys."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    found = [override_at(key.value, value, key.start_mark, problems) for key, value in pairs]
    return tuple(override for override in found if override is not None)


def point_of(node: yaml.Node | None, problems: list[Problem]) -> Point:
    """The point of a mapping of dotted keys, each of which is an axis."""
    found = overrides_in(node, problems)
    return Point(found, {override.key: data(override.value) for override in found})


def variants(root: yaml.MappingNode, problems: list[Problem]) -> list[Point]:
    """One point for each variant of a sweep file."""
    return [
        Point(overrides_in(value, problems), {VARIANT: key.value}) for key, value in pairs(root, "variants")
    ]


def grid_axes(root: yaml.MappingNode, problems: list[Problem]) -> list[list[Point]]:
    """One point for each value, of each key of the grid."""
    axes = []
    for key, values in pairs(root, "grid"):
        items = values.value if isinstance(values, yaml.SequenceNode) else []
        found = [override_at(key.value, item, item.start_mark, problems) for item in items]
        axes.append([Point((one,), {key.value: data(one.value)}) for one in found if one is not None])
    return axes


def fixed_points(root: yaml.MappingNode, problems: list[Problem]) -> Iterator[Point]:
    """Variants x grid, the last key varying fastest; one empty point where a sweep file has neither."""
    for start, *rest in itertools.product(variants(root, problems) or [Point()], *grid_axes(root, problems)):
        yield sum(rest, start)


def count(sweep: Sweep) -> int:
    """How many points there are, without making them."""
    grid = math.prod(len(values) for values in sweep.grid.values())
    drawn = sweep.random or sweep.search
    return max(1, len(sweep.variants)) * grid * (drawn.samples if drawn else 1)


def label(settings: dict[str, Any], axes: Sequence[str]) -> str:
    """`temperature=0.02 momentum=0.9`: of each key as many of its last steps as make it unique."""
    texts = [
        str(value) if key == VARIANT else f"{short_key(key, axes)}={short_value(value)}"
        for key, value in settings.items()
    ]
    return _printable(" ".join(texts)) or "base"


def _printable(text: str) -> str:
    """The text with control characters as escapes, so that no table or terminal obeys them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def pairs(root: yaml.MappingNode, key: str) -> list[tuple[yaml.ScalarNode, Any]]:
    """Keys and values of a mapping in a sweep file; none where it is left out."""
    pair = child(root, key)
    return pair[1].value if pair is not None and isinstance(pair[1], yaml.MappingNode) else []
