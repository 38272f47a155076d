"""The arms of a sweep file, as nodes to be laid over the base."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from dino_lab.spec.compose import TAG
from dino_lab.spec.literal import inline
from dino_lab.spec.merge import lay_over
from dino_lab.spec.nodes import child, data
from dino_lab.spec.problems import Problem
from dino_lab.sweeps.plan.model import DISTRIBUTIONS, Sweep

VARIANT = "variant"  # the axis that names a variant


@dataclass(frozen=True)
class Override:
    """A value at a dotted key, and where the sweep file says so."""

    key: str
    value: yaml.Node
    mark: yaml.Mark


@dataclass(frozen=True)
class Point:
    """What one arm changes in the base."""

    changes: tuple[Override, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __add__(self, other: Point) -> Point:
        return Point(self.changes + other.changes, self.settings | other.settings)

    def over(self, root: yaml.MappingNode, problems: list[Problem]) -> yaml.MappingNode:
        """The base with the changes laid over it."""
        for change in self.changes:
            root = lay_over(root, change.key, change.value, change.mark, problems)
        return root


def overrides(node: yaml.Node | None) -> Point:
    """The changes of a mapping of dotted keys."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return Point(
        tuple(Override(key.value, value, key.start_mark) for key, value in pairs),
        {key.value: data(value) for key, value in pairs},
    )


def points(sweep: Sweep, root: yaml.MappingNode, base: yaml.MappingNode) -> Iterator[Point]:
    """Variants x grid x what is drawn from the space, the last varying fastest."""
    named = [Point(overrides(value).changes, {VARIANT: key.value}) for key, value in _pairs(root, "variants")]
    axes = [
        [
            Point((Override(key.value, item, item.start_mark),), {key.value: data(item)})
            for item in values.value
        ]
        for key, values in _pairs(root, "grid")
    ]
    if sweep.search is not None:
        return
    source = random.Random(sweep.random.seed if sweep.random else 0)
    drawn = sweep.random.samples if sweep.random else 1
    for start, *rest in itertools.product(named or [Point()], *axes):
        fixed = sum(rest, start)
        for _ in range(drawn):
            places = {key: source.random() for key in sweep.space}  # a condition moves no other key
            yield point_at(sweep, root, base, places.__getitem__, fixed)


def corners(sweep: Sweep, root: yaml.MappingNode, base: yaml.MappingNode) -> Iterator[Point]:
    """Points with both ends of every range and with every choice, to see a mistake before the start."""
    for end in (0.0, 1.0):
        places = {key: 0.0 if said.choice else end for key, said in sweep.space.items()}
        yield point_at(sweep, root, base, places.__getitem__)
    for name, said in sweep.space.items():
        for i in range(1, len(said.choice or ())):
            places = {key: place_of(sweep, key, i * (key == name)) for key in sweep.space}
            yield point_at(sweep, root, base, places.__getitem__)


def place_of(sweep: Sweep, key: str, choice: int) -> float:
    """The place of one of the choices of a key; the middle of a range."""
    said = sweep.space[key]
    return (choice + 0.5) / len(said.choice) if said.choice else 0.5


def count(sweep: Sweep) -> int:
    """How many points there are, without making them."""
    grid = math.prod(len(values) for values in sweep.grid.values())
    drawn = sweep.random or sweep.search
    return max(1, len(sweep.variants)) * grid * (drawn.samples if drawn else 1)


def label(settings: dict[str, Any], axes: tuple[str, ...]) -> str:
    """`temperature=0.02 momentum=0.9`: the last step of each key, or all of it where two end alike."""
    ends = [axis.rpartition(".")[2] for axis in axes]
    words = []
    for key, value in settings.items():
        end = key.rpartition(".")[2]
        short = end if ends.count(end) <= 1 else key
        words.append(str(value) if key == VARIANT else f"{short}={_short(value)}")
    return " ".join(words) or "base"


def _short(value: Any) -> str:
    """Of a component its name, and what else is said of it."""
    if isinstance(value, dict) and "name" in value:
        rest = {key: inner for key, inner in value.items() if key != "name"}
        return f"{value['name']}{inline(rest) if rest else ''}"
    return inline(value)


def _pairs(root: yaml.MappingNode, key: str) -> list[tuple[yaml.ScalarNode, Any]]:
    pair = child(root, key)
    return pair[1].value if pair is not None else []


def point_at(
    sweep: Sweep,
    root: yaml.MappingNode,
    base: yaml.MappingNode,
    place: Callable[[str], float],
    point: Point = Point(),
) -> Point:
    """`point` with a value for each key of the space whose conditions hold, in the order of the file.

    `place` is asked where in the distribution of a key, from 0 to 1, its value lies.
    """
    for key, node in _pairs(root, "space"):
        if _holds(sweep.space[key.value].when, point.over(base, [])):
            value = _value(sweep, key.value, node, place(key.value))
            point += Point((Override(key.value, value, key.start_mark),), {key.value: data(value)})
    return point


def _holds(when: dict[str, Any], root: yaml.Node) -> bool:
    return all(_at(root, key.split(".")) == wanted for key, wanted in when.items())


def _at(root: yaml.Node, path: list[str]) -> Any:
    node: yaml.Node = root
    for step in path:
        pair = child(node, int(step) if isinstance(node, yaml.SequenceNode) and step.isdecimal() else step)
        if pair is None:
            return None
        node = pair[1]
    return data(node)


def _value(sweep: Sweep, key: str, node: yaml.Node, place: float) -> yaml.Node:
    """The value at a place from 0 to 1 of the distribution; four digits of a number are enough."""
    said = sweep.space[key]
    if said.choice is not None:
        (choices,) = (pair[1] for name in DISTRIBUTIONS if (pair := child(node, name)) is not None)
        return choices.value[int(place * len(said.choice))]
    if said.log_uniform is not None:
        low, high = map(math.log, said.log_uniform)
        number = math.exp(low + place * (high - low))
    else:
        assert said.uniform is not None
        number = said.uniform[0] + place * (said.uniform[1] - said.uniform[0])
    return yaml.ScalarNode(TAG + "float", f"{number:.4g}", node.start_mark, node.end_mark)
