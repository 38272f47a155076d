"""The parameters of a component: the keyword-only arguments of its constructor, as a Pydantic model.

A constructor may take several of its parameters as one group, whose keys stand flat among its own in YAML:

    class Noise(ParameterGroup):
        amount: float = Field(0.1, ge=0, description="standard deviation, in grey levels")
        noise_seed: int = Field(0, ge=0, description="of the noise, the same for every image")

    @register("augment", "noisy")
    class Noisy(nn.Module):
        def __init__(self, *, size: int, noise: Flat[Noise] = Noise(amount=0.5)) -> None: ...

In YAML that is `augment: {name: noisy, size: 32, amount: 0.2}`, and the constructor gets `noise.amount`. The
default of the argument gives the defaults of the keys; without it they are those of the group. A group
without `Flat` is an ordinary value, a mapping: `noise: {amount: 0.2}`.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from copy import copy
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator


class ParameterGroup(BaseModel):
    """Parameters that belong together, declared once for several components."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Group = TypeVar("Group", bound=ParameterGroup)
_FLAT = object()
# The type of an argument whose keys stand flat among the component's own.
Flat = Annotated[Group, _FLAT]


class EvaluatorOptions(ParameterGroup):
    """What every evaluator of this package may be told: how often it is asked, and about which network."""

    every: int = Field(1, gt=0, description="epochs from one evaluation to the next; the last always counts")
    of: Literal["teacher", "student"] = Field(
        "teacher", description="network that is evaluated; the student where the teacher has no network"
    )


class Params(BaseModel):
    """Validated parameters of one component; `name` says which."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    component: ClassVar[type | None] = None  # the class whose parameters these are
    _groups: ClassVar[dict[str, type[ParameterGroup]]] = {}  # by argument of the constructor
    name: str

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        """Validators of a whole group; those of single keys have run already."""
        for argument in self._groups:
            try:
                _gathered(self, argument)
            except ValidationError as error:
                raise ValueError("; ".join(map(_said, error.errors()))) from None
        return self


def arguments(params: Params) -> dict[str, Any]:
    """The keyword arguments of the constructor: keys of a group are gathered, nested models stay models."""
    groups = {argument: _gathered(params, argument) for argument in params._groups}
    taken = {key for group in groups.values() for key in type(group).model_fields}
    fields = type(params).model_fields.keys() - taken - {"name"}
    return {key: getattr(params, key) for key in fields} | groups


def parameter_model(cls: type, name: str) -> type[Params]:
    """The model of the keyword-only arguments of `cls`, a component called `name`.

    A TypeError says which argument has no type, or a type that is not there at run time; which key stands
    twice; or that there is no docstring.
    """
    fields: dict[str, Any] = {"name": (Literal[name], ...)}
    groups: dict[str, type[ParameterGroup]] = {}
    for argument, hint in _hints(cls).items():
        default = inspect.signature(cls).parameters[argument].default
        own: dict[str, Any] = {argument: (hint, ... if default is inspect.Parameter.empty else default)}
        if (group := _group(cls, argument, hint)) is not None:
            groups[argument], own = group, _fields(group, default)
        if both := fields.keys() & own.keys():
            raise TypeError(f"{cls.__qualname__}.__init__: the key {min(both)!r} stands twice; rename one")
        fields |= own
    doc = inspect.cleandoc(cls.__doc__ or "")  # its own, not that of nn.Module
    if not doc and sys.flags.optimize < 2:  # python -OO drops them all
        raise TypeError(
            f"{cls.__qualname__}: a component has a docstring; it is what `list` and the schema show"
        )
    model = create_model(f"{cls.__name__}Params", __base__=Params, __doc__=doc, **fields)
    model.component, model._groups = cls, groups
    return model


def undescribed(model: type[BaseModel]) -> list[str]:
    """Keys of a model, and of the mappings in it, whose description is missing or only repeats the key."""
    found = _undescribed(model)
    for mapping in mappings_in([model]):
        found += [f"{mapping.__name__}.{key}" for key in _undescribed(mapping)]
    return found


def _undescribed(model: type[BaseModel]) -> list[str]:
    return [
        key
        for key, field in model.model_fields.items()
        if key != "name" and _letters(field.description or "") in ("", _letters(key))
    ]


def mappings_in(models: Iterable[type[BaseModel]]) -> list[type[BaseModel]]:
    """The mappings that may be values of the models, and those in them; each once."""
    found: dict[type[BaseModel], None] = {}
    waiting = list(models)
    while waiting:
        inside = dict.fromkeys(
            mapping
            for field in waiting.pop(0).model_fields.values()
            for mapping in _mappings(field.annotation)
        )
        waiting = [mapping for mapping in inside if mapping not in found] + waiting
        found |= inside
    return list(found)


def _mappings(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if "name" not in annotation.model_fields:
            yield annotation
        return
    for argument in get_args(annotation):
        yield from _mappings(argument)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower()).removeprefix("the")


def _hints(cls: type) -> dict[str, Any]:
    """The types of the keyword-only arguments, in order."""
    try:
        hints = get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    except NameError as error:
        raise TypeError(
            f"{cls.__qualname__}.__init__: the type {error.name!r} is not there at run time; "
            "import it outside `if TYPE_CHECKING`"
        ) from None
    given = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if untyped := [argument for argument in given if argument not in hints]:
        raise TypeError(
            f"{cls.__qualname__}.__init__: {untyped[0]} has no type; what YAML may set has one, "
            "such as Annotated[float, Field(gt=0)]"
        )
    return {argument: hints[argument] for argument in given}


def _group(cls: type, argument: str, hint: Any) -> type[ParameterGroup] | None:
    """The group whose keys stand flat; None for an ordinary argument."""
    if _FLAT not in getattr(hint, "__metadata__", ()):
        return None
    group = get_args(hint)[0]
    if isinstance(group, type) and issubclass(group, ParameterGroup):
        return group
    raise TypeError(
        f"{cls.__qualname__}.__init__: {argument}: Flat[...] takes a class derived from ParameterGroup"
    )


def _fields(group: type[ParameterGroup], default: Any) -> dict[str, Any]:
    """The fields of a group, with the defaults of an instance where there is one."""
    fields = {key: copy(field) for key, field in group.model_fields.items()}
    if isinstance(default, ParameterGroup):
        for key, field in fields.items():
            field.default, field.default_factory = getattr(default, key), None
    return {key: (field.annotation, field) for key, field in fields.items()}


def _gathered(params: Params, argument: str) -> ParameterGroup:
    group = params._groups[argument]
    return group(**{key: getattr(params, key) for key in group.model_fields})


def _said(error: Any) -> str:
    return ": ".join([*map(str, error["loc"]), str(error.get("ctx", {}).get("error", error["msg"]))])
