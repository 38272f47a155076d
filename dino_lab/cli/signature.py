"""Types, ranges and defaults of parameters, as a person would write them."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dino_lab.schedule import Schedule
from dino_lab.spec.literal import inline

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
    return "required" if field.is_required() else inline(field.get_default(call_default_factory=True))
