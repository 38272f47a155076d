"""Operations as the lists of a spec have them: `flip`, `{grey: 0.2}`, `{crop: {scale: [0.4, 1]}}`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import InitErrorDetails, PydanticCustomError

from dino_lab.errors import UserError
from dino_lab.registry.parameters import Params
from dino_lab.registry.registration import registry, suggest


def operation(given: Any) -> Params:
    """The parameters of an operation, given as its name, as `{name: keys}`, or with `name` among its keys.

    A number in place of the keys is the probability `p`. A ValidationError or ValueError says what is wrong.
    """
    if isinstance(given, Params):
        return given
    name, keys, short = _read(given)
    try:
        params = registry.find("operation", name).params
    except UserError as error:
        raise ValueError(
            str(error).removesuffix(")") + ", kornia.NAME)" * str(error).endswith(")")
        ) from error
    known = [key for key in params.model_fields if key != "name"]
    try:
        unknown = [_unknown(key, keys[key], known) for key in keys if key not in known]
        if unknown:
            raise ValidationError.from_exception_data(name, unknown)
        # As JSON, strict means: no true and no "1" for a 1, but a list for a tuple.
        return params.model_validate_json(json.dumps({"name": name, **keys}), strict=True)
    except ValidationError as error:
        if not short:
            raise
        raise ValidationError.from_exception_data(name, [_under(name, d) for d in error.errors()]) from None


def _read(given: Any) -> tuple[str, dict[str, Any], bool]:
    """Name and keys; whether the keys stand under the name."""
    if isinstance(given, str):
        return given, {}, False
    if isinstance(given, dict) and isinstance(given.get("name"), str):
        return given["name"], {key: value for key, value in given.items() if key != "name"}, False
    if not (isinstance(given, dict) and len(given) == 1):
        raise ValueError(
            "is no operation; write its name, such as flip, {grey: 0.2}, or {crop: {scale: [0.4, 1]}} "
            f"(there are: {', '.join(registry.names('operation'))}, kornia.NAME)"
        )
    ((name, keys),) = given.items()
    if isinstance(keys, dict):
        return name, keys, True
    if isinstance(keys, (int, float, list)) and not isinstance(keys, bool):
        return name, {"p": keys}, True
    raise ValueError(f"{name}: must be a mapping of keys, or a number, its probability")


def _unknown(key: str, value: Any, known: Sequence[str]) -> InitErrorDetails:
    words = f"unknown key{suggest(key, list(known))} (accepted: {', '.join(known) or 'none'})"
    # Braces are not for Pydantic to fill in.
    return InitErrorDetails(
        type=PydanticCustomError("unknown_key", "{words}", {"words": words}), loc=(key,), input=value
    )


def _under(name: str, detail: Any) -> InitErrorDetails:
    """What is wrong with a key, one step further down."""
    kind: Any = detail["type"]
    if kind == "unknown_key":
        kind = PydanticCustomError("unknown_key", "{words}", detail["ctx"])
    return InitErrorDetails(
        type=kind, loc=(name, *detail["loc"]), input=detail["input"], ctx=detail.get("ctx", {})
    )


# Said by name, by `{name: keys}`, or with `name` among its keys; `spec.json_schema` knows the mark.
OperationParams = Annotated[Params, PlainValidator(operation), WithJsonSchema({"format": "operation"})]
