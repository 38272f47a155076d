"""What differs between two specs, key by key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from dino_lab.registry import Params
from dino_lab.schedule import Schedule
from dino_lab.spec.literal import inline, is_constant
from dino_lab.spec.model import After, Spec

NOTHING = "-"  # where one of two lists has no such item


@dataclass(frozen=True)
class Change:
    """A dotted key, and what each spec says there, as YAML would have it."""

    key: str
    old: str
    new: str


def difference(old: Spec, new: Spec) -> list[Change]:
    """Every value that differs, in the order of a spec; the name of the run's folder is none.

    A component with another name is one change: its name, and what it says besides its defaults.
    """
    return [
        change
        for field in Spec.model_fields
        if field != "name"
        for change in _changes(field, getattr(old, field), getattr(new, field))
    ]


def _changes(key: str, old: Any, new: Any) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, tuple) and isinstance(new, tuple) and _lists_components(old + new):
        for i in range(max(len(old), len(new))):
            items = (part[i] if i < len(part) else NOTHING for part in (old, new))
            yield from _changes(f"{key}.{i}", *items)
    elif _is_one_kind_of_mapping(old, new):
        for field in type(old).model_fields:
            yield from _changes(f"{key}.{field}", getattr(old, field), getattr(new, field))
    else:
        yield Change(key, inline(old), inline(new))


def _lists_components(items: tuple[Any, ...]) -> bool:
    return all(isinstance(item, Params) for item in items)


def _is_one_kind_of_mapping(old: Any, new: Any) -> bool:
    """Whether two values have keys to be compared one by one."""
    if isinstance(old, Schedule) and isinstance(new, Schedule):
        return not (is_constant(old) or is_constant(new))
    if not (isinstance(old, BaseModel) and isinstance(new, BaseModel)) or isinstance(old, After):
        return False
    names = [getattr(value, "name", None) for value in (old, new)]
    return names[0] == names[1] and type(old).model_fields.keys() == type(new).model_fields.keys()
