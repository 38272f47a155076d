"""Parameters as a person reads them: type with bounds, default, meaning.

`dino-lab show`, the reference page and the texts in the JSON Schema are all made of these.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dino_lab.registry import Params
from dino_lab.schedule import Schedule
from dino_lab.spec.literal import inline

REQUIRED = "required"
LIST = "list of:"
ITS_DEFAULTS = "its defaults"  # of a mapping
_PLAIN_TYPES: dict[Any, str] = {
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    type(None): "null",
    dict: "mapping",
    Any: "any value",
}
# Attributes of annotations that bound a value, and of our own `Within`.
_BOUNDS = {
    "gt": ">",
    "above": ">",
    "ge": ">=",
    "at_least": ">=",
    "lt": "<",
    "le": "<=",
    "at_most": "<=",
    "multiple_of": "a multiple of",
}
_LENGTHS = {"min_length": "at least", "max_length": "at most"}


@dataclass(frozen=True)
class Style:
    """How text that stands in a file, and a mapping that is described elsewhere, are set."""

    code: Callable[[str], str]
    mapping: Callable[[type[BaseModel]], str]


def _name_of_mapping(model: type[BaseModel]) -> str:
    return "number or schedule" if model is Schedule else f"mapping {model.__name__}"


PLAIN = Style(code=str, mapping=_name_of_mapping)
MARKDOWN = Style(code="`{}`".format, mapping=lambda model: f"[{model.__name__}](#{model.__name__.lower()})")


class Row(NamedTuple):
    """A parameter in words."""

    key: str
    type: str
    default: str
    meaning: str


def rows(model: type[BaseModel], style: Style = PLAIN) -> list[Row]:
    """All parameters of a model, in order, but for the name of a component."""
    return [
        Row(
            key,
            type_in_words(field.annotation, field.metadata, style),
            default_in_words(field, style),
            field.description or "",
        )
        for key, field in model.model_fields.items()
        if key != "name" or not _is_component(model)
    ]


def hover_text(field: FieldInfo) -> str:
    """What an editor shows of a key: `meaning (type; default value)`."""
    facts, default = type_in_words(field.annotation, field.metadata), default_in_words(field)
    if default not in (REQUIRED, ITS_DEFAULTS):
        facts = f"{facts}; default {default}"
    return f"{field.description} ({facts})" if field.description else facts


def default_in_words(field: FieldInfo, style: Style = PLAIN) -> str:
    """The default as YAML would have it, or `required`."""
    if field.is_required():
        return REQUIRED
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel) and not isinstance(value, (Schedule, Params)) and value == type(value)():
        return ITS_DEFAULTS
    return style.code(inline(value))


def type_in_words(annotation: Any, metadata: Iterable[Any] = (), style: Style = PLAIN) -> str:
    """A type and its bounds, e.g. `number > 0 or null`."""
    limits = " and ".join(_limits(metadata, style))
    *options, last = _options(annotation, style)
    if lengths := " and ".join(_lengths(metadata)):
        if not last.startswith(LIST):
            limits = " and ".join(filter(None, [f"of {lengths} characters", limits]))
        last = last.replace(LIST, f"list of {lengths}:", 1)
    if limits and last == "null" and options:  # the bounds are those of the number
        return f"{_joined(options)} {limits} or null"
    return f"{_joined([*options, last])} {limits}".strip()


def _options(annotation: Any, style: Style) -> list[str]:
    """The alternatives that a type allows, `null` last."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        found = [option for argument in arguments for option in _options(argument, style)]
        return sorted(dict.fromkeys(found), key=lambda option: option == "null")
    if origin is Literal:
        return [style.code(inline(choice)) for choice in arguments]
    if annotation is bool:
        return [style.code("true"), style.code("false")]
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return [style.code(inline(choice)) for choice in annotation]
    return [_one(annotation, origin, arguments, style)]


def _one(annotation: Any, origin: Any, arguments: tuple[Any, ...], style: Style) -> str:
    if origin is Annotated:
        return type_in_words(arguments[0], arguments[1:], style)
    if origin is tuple and Ellipsis not in arguments:
        items = dict.fromkeys(type_in_words(argument, (), style) for argument in arguments)
        return f"list of {len(arguments)}: {', '.join(items)}"
    if origin in (list, tuple):
        return f"{LIST} {type_in_words(arguments[0], (), style)}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "component" if _is_component(annotation) else style.mapping(annotation)
    return _PLAIN_TYPES.get(origin or annotation) or getattr(annotation, "__name__", str(annotation)).lower()


def _is_component(model: type[BaseModel]) -> bool:
    """Whether the model's `name` says what it is; that of a spec is only its title."""
    name = model.model_fields.get("name")
    return name is not None and (model is Params or get_origin(name.annotation) is Literal)


def _limits(metadata: Iterable[Any], style: Style) -> list[str]:
    """The bounds that annotations state, such as `> 0`."""
    found: list[str] = []
    for item in _flattened(metadata):
        for attribute, sign in _BOUNDS.items():
            value = getattr(item, attribute, None)
            if value is not None and abs(value) != float("inf"):
                found.append(f"{sign} {value:g}" if isinstance(value, float) else f"{sign} {value}")
        if pattern := getattr(item, "pattern", None):
            found.append(f"like {style.code(pattern)}")
    return found


def _lengths(metadata: Iterable[Any]) -> list[str]:
    """The lengths that annotations state, such as `at least 1`."""
    return [
        f"{words} {length}"
        for item in _flattened(metadata)
        for attribute, words in _LENGTHS.items()
        if (length := getattr(item, attribute, None)) is not None
    ]


def _flattened(metadata: Iterable[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from _flattened(item.metadata) if isinstance(item, FieldInfo) else (item,)


def _joined(options: Sequence[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *first, last = options
    return f"{', '.join(first)} or {last}" if first else last
