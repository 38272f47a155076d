"""Types, ranges and defaults of parameters, as a person would write them."""

from __future__ import annotations

import types
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dino_lab.schedule import Schedule

_BOUNDS = {
    "gt": ">",
    "ge": ">=",
    "lt": "<",
    "le": "<=",
    "above": ">",
    "at_least": ">=",
    "at_most": "<=",
    "multiple_of": "multiple of",
    "min_length": "length >=",
    "max_length": "length <=",
    "pattern": "like",
}
_NAMES = {
    Schedule: "number or ramp",
    type(None): "null",
    int: "integer",
    float: "number",
    str: "text",
    bool: "true | false",
}


def type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type and its bounds, e.g. `number or ramp > 0`."""
    return " ".join([_bare(annotation), ", ".join(_bounds(metadata))]).strip()


def _bare(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0], arguments[1:])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " | ".join(map(_bare, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"[{', '.join(map(_bare, arguments))}]"
    if origin in (list, tuple):
        return f"[{_bare(arguments[0])}, ...]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not Schedule:
        return f"{{{', '.join(annotation.model_fields)}}}"
    return _NAMES.get(annotation) or getattr(annotation, "__name__", str(annotation)).lower()


def _bounds(metadata: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for item in metadata:
        if isinstance(item, FieldInfo):
            found += _bounds(item.metadata)
        for attribute, sign in _BOUNDS.items():
            value = getattr(item, attribute, None)
            if value is not None and value not in (float("inf"), float("-inf")):
                found.append(f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}")
    return found


def default_in_words(field: FieldInfo) -> str:
    """The default as YAML would have it, or `required`."""
    return "required" if field.is_required() else _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    if isinstance(value, Schedule) and value == Schedule(start=value.start, end=value.start):
        return f"{value.start:g}"
    if isinstance(value, BaseModel):
        changed = {
            key: getattr(value, key)
            for key, field in type(value).model_fields.items()
            if field.is_required() or getattr(value, key) != field.default
        }
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in changed.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)
