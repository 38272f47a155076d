"""Values drawn or chosen from the `space` of a sweep file, and the conditions under which they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from dino_lab.registry import Registry, suggest
from dino_lab.schedule import Schedule
from dino_lab.spec.compose import TAG
from dino_lab.spec.file import read_nodes
from dino_lab.spec.literal import inline
from dino_lab.spec.merge import Override, override_at
from dino_lab.spec.nodes import child, data, mark_at
from dino_lab.spec.problems import Problem
from dino_lab.sweeps.plan.arms import Base, Point, fixed_points, grid_axes, pairs, variants
from dino_lab.sweeps.plan.model import Distribution, Sweep

_STEPS = 1000  # of a range, that a rounded number is at most away from the drawn one


_NOTHING = Point()


class Space:
    """The `space` of a sweep file; `root` are the nodes of the file."""

    def __init__(self, sweep: Sweep, root: yaml.MappingNode, base: Base, registry: Registry) -> None:
        self.sweep, self.root, self.base, self._registry = sweep, root, base, registry
        self._plain: dict[str, Any] = {}  # specs as plain data, by what was changed

    def point(self, place: Callable[[str], float], point: Point = _NOTHING) -> Point:
        """`point` with a value for each key whose conditions hold, in the order of the file.

        `place` is asked where in the distribution of a key, from 0 to 1, its value lies.
        """
        for key, node in pairs(self.root, "space"):
            distribution = self.sweep.space[key.value]
            if distribution.when and not self._holds(distribution.when, point):
                continue
            value = value_at(distribution, node, place(key.value))
            override = override_at(key.value, value, key.start_mark, [])
            if override is not None:
                point += Point((override,), {key.value: data(value)})
        return point

    def corners(self) -> Iterator[Point]:
        """Points with both ends of every range and with every choice, to find mistakes before the start."""
        for end in (0.0, 1.0):
            places = {key: 0.0 if one.choice else end for key, one in self.sweep.space.items()}
            yield self.point(places.__getitem__)
        for name, distribution in self.sweep.space.items():
            for i in range(1, len(distribution.choice or ())):
                places = {key: self.place_of(key, i * (key == name)) for key in self.sweep.space}
                yield self.point(places.__getitem__)

    def place_of(self, key: str, choice: int) -> float:
        """The place of one of the choices of a key; the middle of a range."""
        choices = self.sweep.space[key].choice
        return (choice + 0.5) / len(choices) if choices else 0.5

    def check(self) -> list[Problem]:
        """Mistakes in keys and conditions: conditions that can never hold, or ask for what comes later."""
        problems: list[Problem] = []
        keys = [override_at(key.value, key, key.start_mark, problems) for key, _ in pairs(self.root, "space")]
        for i, (key, node) in enumerate(pairs(self.root, "space")):
            distribution, when = self.sweep.space[key.value], child(node, "when")
            for asked, wanted in distribution.when.items():
                loc = ("space", key.value, "when", asked)
                mark = mark_at(when[1], (asked,)) if when is not None else key.start_mark
                message = self._mistake(asked, wanted, keys[:i], keys[i:])
                if message is not None:
                    problems.append(Problem(mark, loc, message))
        return problems

    def _mistake(
        self,
        asked: str,
        wanted: Any,
        before: Sequence[Override | None],
        later: Sequence[Override | None],
    ) -> str | None:
        """What is wrong with a condition, or None."""
        this = override_at(asked, self.root, self.root.start_mark, [])
        if this is None:
            return "must be a dotted key of the spec, such as targets.name"
        for other in later:
            if other is not None and this.path[: len(other.place)] == other.place:
                return f"asks for what {other.key!r} sets, which must stand above it in space"
        if any(other is not None and other.path == this.path for other in before):
            distribution = self.sweep.space[asked]
            if distribution.choice is None:
                return (
                    None if _is_within(wanted, distribution) else f"never holds: {asked} is drawn elsewhere"
                )
        specs = [self._spec(point) for point in self._single_changes()]
        found = [value for spec in specs if (value := _at(spec, asked)) is not _MISSING]
        if not found:
            keys = list(dict.fromkeys(key for spec in specs for key in _keys(spec)))
            return f"no spec of this sweep has the key {asked!r}{suggest(asked, keys)}"
        asked_for = [wanted] if not isinstance(wanted, list) or wanted in found else wanted
        for value in asked_for:
            if not any(_is_same(one, value) for one in found):
                there = ", ".join(dict.fromkeys(map(inline, found)))
                return f"never holds: {asked} is never {inline(value)} here (it is: {there})"
        return None

    def _single_changes(self) -> Iterator[Point]:
        """The base, and it with one variant, one value of the grid or one choice alone."""
        yield Point()
        yield from variants(self.root, [])
        for axis in grid_axes(self.root, []):
            yield from axis
        for key, node in pairs(self.root, "space"):
            choices = child(node, "choice")
            for value in choices[1].value if choices is not None else ():
                override = override_at(key.value, value, key.start_mark, [])
                if override is not None:
                    yield Point((override,), {key.value: data(value)})

    def _holds(self, when: dict[str, Any], point: Point) -> bool:
        spec = self._spec(point)
        return all(_is_allowed(_at(spec, key), wanted) for key, wanted in when.items())

    def _spec(self, point: Point) -> Any:
        """The spec at a point as plain data, with its defaults; what the text says where it is no spec."""
        key = repr([(override.key, data(override.value)) for override in point.overrides])
        if key not in self._plain:
            problems: list[Problem] = []
            root = self.base.with_point(point, problems)
            document = read_nodes(root, self.base.file, problems, self._registry)
            self._plain[key] = data(root) if document is None else document.spec.dump()
        return self._plain[key]


def drawn_points(
    sweep: Sweep, space: Space, source: Callable[[], float], problems: list[Problem]
) -> Iterator[Point]:
    """Variants x grid x what is drawn from the space; `source` gives numbers from 0 to 1."""
    for fixed in fixed_points(space.root, problems):
        for _ in range(sweep.random.samples if sweep.random else 1):
            places = {key: source() for key in sweep.space}  # a condition moves no other key
            yield space.point(places.__getitem__, fixed)


def value_at(distribution: Distribution, node: yaml.Node, place: float) -> yaml.Node:
    """The value at a place from 0 to 1 of a distribution; `node` is its text."""
    if distribution.choice is not None:
        choices = child(node, "choice")
        assert choices is not None
        chosen: yaml.Node = choices[1].value[
            min(int(place * len(distribution.choice)), len(distribution.choice) - 1)
        ]
        return chosen
    bounds = distribution.int_uniform or distribution.log_int_uniform
    if bounds is not None:
        number = _whole_number(*bounds, place, logarithmic=distribution.log_int_uniform is not None)
        return yaml.ScalarNode(TAG + "int", str(number), node.start_mark, node.end_mark)
    ends = distribution.uniform or distribution.log_uniform
    assert ends is not None
    text = _number(*ends, place, logarithmic=distribution.log_uniform is not None)
    return yaml.ScalarNode(TAG + "float", text, node.start_mark, node.end_mark)


def _whole_number(low: int, high: int, place: float, *, logarithmic: bool) -> int:
    """A whole number from `low` to `high`, both of which can be drawn; each owns the half around it."""
    if not logarithmic:
        return min(low + int(place * (high - low + 1)), high)
    start, end = math.log(low - 0.5), math.log(high + 0.5)
    return min(max(round(math.exp(start + place * (end - start))), low), high)


def _number(low: float, high: float, place: float, *, logarithmic: bool) -> str:
    """A number from `low` to `high` with four digits, or as many as keep it within and near its place."""
    scale: Callable[[float], float] = math.log if logarithmic else float
    drawn = scale(low) + place * (scale(high) - scale(low))
    number = min(max(math.exp(drawn) if logarithmic else drawn, low), high)
    near = (scale(high) - scale(low)) / _STEPS
    for digits in range(4, 17):
        text = f"{number:.{digits}g}"
        if low <= float(text) <= high and abs(scale(float(text)) - scale(number)) <= near:
            return text
    return repr(number)


_MISSING = object()


def _at(spec: Any, key: str) -> Any:
    """The value at a dotted key of plain data; a schedule that does not change is its number."""
    for step in key.split("."):
        if isinstance(spec, dict) and step in spec:
            spec = spec[step]
        elif isinstance(spec, list) and step.isdecimal() and int(step) < len(spec):
            spec = spec[int(step)]
        else:
            return _MISSING
    if isinstance(spec, dict) and spec.keys() == Schedule.model_fields.keys():
        constant = Schedule(start=spec["start"], end=spec["start"]).model_dump()
        return spec["start"] if spec == constant else spec
    return spec


def _keys(spec: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key of plain data."""
    items = spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ()
    for key, value in items:
        yield f"{prefix}{key}"
        yield from _keys(value, f"{prefix}{key}.")


def _is_allowed(found: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, or in the wanted list."""
    if found is _MISSING:
        return False
    return _is_same(found, wanted) or (
        isinstance(wanted, list) and any(_is_same(found, one) for one in wanted)
    )


def _is_same(found: Any, wanted: Any) -> bool:
    """Equality in which true is no 1."""
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_is_same, found, wanted))
    return bool(found == wanted) and isinstance(found, bool) == isinstance(wanted, bool)


def _is_within(wanted: Any, distribution: Distribution) -> bool:
    """Whether every wanted number lies in a range."""
    ends = distribution.bounds
    values = wanted if isinstance(wanted, list) else [wanted]
    return ends is not None and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and ends[0] <= value <= ends[1]
        for value in values
    )
