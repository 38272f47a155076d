"""What Pydantic found, in plain English and at its place in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dino_lab.errors import Loc
from dino_lab.registry import suggest
from dino_lab.spec.nodes import child, mark_at
from dino_lab.spec.problems import Problem, shown

# By Pydantic's error type. Where a type is not here, Pydantic's own sentence is used.
_MUST = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "multiple_of": "must be a multiple of {multiple_of}",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "path_type": "must be text, the path of a file or folder",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "dict_type": "must be a mapping of keys",
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "none_required": "must be null",
}


def in_words(error: ValidationError, spec: type[BaseModel], root: yaml.Node) -> list[Problem]:
    """One problem for each place at which something is wrong."""
    found: dict[Loc, list[tuple[str, str]]] = {}
    for detail in error.errors():
        loc = _in_text(detail["loc"], root, keep_last=detail["type"] == "missing")
        if detail["type"] == "missing" and isinstance(loc[-1], int):
            loc, said = loc[:-1], ("has too few items", "")
        else:
            said = _say(detail, loc, spec)
        # The branches of a union each complain about the same place.
        if said not in found.setdefault(loc, []):
            found[loc].append(said)
    # Where a mapping was given, the branches of a union that take none have nothing to say.
    above = {loc[:i] for loc in found for i in range(len(loc))}
    return [
        Problem(
            mark_at(root, loc),
            loc,
            " or ".join([said[0][0], *(text.removeprefix("must be ") for text, _ in said[1:])]) + said[-1][1],
        )
        for loc, said in found.items()
        if loc not in above
    ]


def _in_text(loc: Loc, root: yaml.Node, *, keep_last: bool) -> Loc:
    """`loc` without the steps that Pydantic made up, such as the branch of a union."""
    node: yaml.Node | None = root
    steps: list[str | int] = []
    for i, step in enumerate(loc):
        pair = child(node, step)
        if pair is not None:
            steps.append(step)
            node = pair[1]
        elif keep_last and i == len(loc) - 1:
            steps.append(step)
    return tuple(steps)


def _say(detail: Mapping[str, Any], loc: Loc, spec: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, and what was given instead."""
    context, got = detail.get("ctx", {}), f", got {shown(detail['input'])}"
    match detail["type"]:
        case "missing":
            return "required, but not given", ""
        case "extra_forbidden":
            known = accepted(spec, loc)
            return f"unknown key{suggest(str(loc[-1]), known)} (accepted: {', '.join(known) or 'none'})", ""
        case "value_error" | "assertion_error":
            return str(context["error"]), ""
        case "literal_error" | "enum":
            choices = re.findall(r"'([^']*)'", context["expected"])
            hint = suggest(str(detail["input"]), choices)
            one_of = "one of " if len(choices) > 1 else ""
            return f"must be {one_of}{', '.join(choices) or context['expected']}", got + hint
        case "too_long" | "too_short":
            limit = (
                f"most {context.get('max_length')}"
                if "max_length" in context
                else f"least {context.get('min_length')}"
            )
            return f"must have at {limit} items", f", got {len(detail['input'])}"
        case "model_type" | "model_attributes_type" if context.get("class_name") == "Schedule":
            return "must be a number, or a mapping with start and end", got
        case kind if kind in _MUST:
            return _MUST[kind].format(**{key: _plain(value) for key, value in context.items()}), got
    message = str(detail["msg"]).replace("Input should", "must")
    return message[:1].lower() + message[1:], got


def _plain(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value


def accepted(spec: type[BaseModel], loc: Loc) -> list[str]:
    """The keys that may stand where the last step of `loc` stands."""
    annotations: list[Any] = [spec]
    for step in loc[:-1]:
        annotations = [inner for annotation in annotations for inner in _under(annotation, step)]
    models = [model for annotation in annotations for model in _models(annotation)]
    keys = [key for model in models for key in model.model_fields if model is spec or key != "name"]
    return [*dict.fromkeys(keys), *(getattr(spec, "beside", ()) if len(loc) == 1 else ())]


def _under(annotation: Any, step: str | int) -> list[Any]:
    """The annotations one step further down."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(step))
        return [field.annotation] if field else []
    arguments = get_args(annotation)
    if isinstance(step, int) and get_origin(annotation) in (tuple, list):
        fixed = get_origin(annotation) is tuple and Ellipsis not in arguments and step < len(arguments)
        return [arguments[step]] if fixed else list(arguments[:1])
    return [inner for argument in arguments for inner in _under(argument, step)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
