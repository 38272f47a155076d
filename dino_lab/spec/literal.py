"""Values as YAML would have them, in one line."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from pydantic import BaseModel

from dino_lab.schedule import Schedule
from dino_lab.spec.model import After


def inline(value: Any) -> str:
    """`0.1`, `[1, 2]`, `{start: 1, end: 0}`; of a component its name, and what is not a default."""
    if isinstance(value, Schedule):
        if is_constant(value):
            return inline(value.start)
        return _mapping(value.model_dump(exclude_defaults=True))
    if isinstance(value, After):
        return value.in_words
    if isinstance(value, BaseModel) and "name" in type(value).model_fields:
        said = {field: getattr(value, field) for field in value.model_dump(exclude_defaults=True)}
        name = str(said.pop("name"))
        return f"{name} {_mapping(said)}" if said else name
    if isinstance(value, BaseModel):
        return _mapping({field: getattr(value, field) for field in type(value).model_fields})
    if isinstance(value, dict):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, Enum):
        return str(value.value)
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def is_constant(schedule: Schedule) -> bool:
    """Whether a number says it all."""
    return schedule == Schedule(start=schedule.start, end=schedule.start)


def _mapping(values: dict[str, Any]) -> str:
    return f"{{{', '.join(f'{key}: {inline(value)}' for key, value in values.items())}}}"
