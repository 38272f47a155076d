"""`kornia.NAME`: any augmentation of one image by Kornia; its constructor's signature is its parameters."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Sequence
from enum import Enum
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import kornia.augmentation
import torch
from kornia.augmentation import AugmentationBase2D
from pydantic import Field

from dino_lab.errors import UserError, first_line
from dino_lab.registry import suggest

# Arguments that a spec does not set: every crop draws numbers of its own, and batches keep their form.
SET_HERE = {"same_on_batch": False, "keepdim": False, "p_batch": 1.0}
# What cannot be an operation on crops, and why.
REFUSED = {
    "Normalize": "the network normalises its images itself",
    "Denormalize": "crops are not normalised",
    "RandomDissolving": "it downloads a diffusion model, and draws numbers that cannot be drawn again",
}


def names() -> list[str]:
    """The augmentations that can be operations."""
    return [name for name in sorted(vars(kornia.augmentation)) if _reason(name) is None]


def component(name: str) -> type:
    """The class of the operation `kornia.NAME`; a UserError says why there is none."""
    if (reason := _reason(name)) is not None:
        raise UserError(f"operation 'kornia.{name}': {reason}")
    base = getattr(kornia.augmentation, name)
    given = [
        p for p in inspect.signature(base).parameters.values() if p.name not in SET_HERE and _is_named(p)
    ]
    hints = get_type_hints(base.__init__)
    meanings = _meanings(base)
    defaults = {p.name: _default(p.default, hints[p.name]) for p in given}

    def __init__(self: Any, pixels: int, **parameters: Any) -> None:
        try:
            base.__init__(self, **_for_kornia(parameters, hints), **_kept(base))
        except (ValueError, TypeError, RuntimeError, AssertionError, KeyError) as error:
            raise ValueError(f"operation 'kornia.{name}': Kornia refuses this: {first_line(error)}") from None

    __init__.__annotations__ = {p.name: _described(p, hints[p.name], meanings.get(p.name)) for p in given} | {
        "pixels": int
    }
    cls = type(
        name,
        (base,),
        {"__init__": __init__, "__doc__": _summary(base), "__module__": __name__, "made_of": base},
    )
    cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("pixels", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(p.name, inspect.Parameter.KEYWORD_ONLY, default=defaults[p.name])
                for p in given
            ),
        ]
    )
    __init__.__signature__ = _with_self(cls.__signature__)  # type: ignore[attr-defined]
    return cls


def _with_self(signature: inspect.Signature) -> inspect.Signature:
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return signature.replace(parameters=[first, *signature.parameters.values()])


def _reason(name: str) -> str | None:
    """Why this is no operation, or None."""
    found = getattr(kornia.augmentation, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        known = [other for other in vars(kornia.augmentation) if _is_operation(other)]
        return f"kornia.augmentation has no {name!r}{suggest(name, known)}"
    if name in REFUSED:
        return REFUSED[name]
    if not _is_operation(name):
        return "it is no augmentation of one image by itself (kornia.augmentation.AugmentationBase2D)"
    return None


def _is_operation(name: str) -> bool:
    found = getattr(kornia.augmentation, name, None)
    return (
        isinstance(found, type)
        and issubclass(found, AugmentationBase2D)
        and not name.endswith("Base2D")
        and name not in REFUSED
    )


def _is_named(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _kept(base: type) -> dict[str, Any]:
    return {name: value for name, value in SET_HERE.items() if name in inspect.signature(base).parameters}


def _described(parameter: inspect.Parameter, hint: Any, meaning: str | None) -> Any:
    """The type that YAML may give, with what Kornia says of it."""
    words = meaning or f"argument `{parameter.name}` of Kornia's constructor"
    if parameter.name == "p":
        return Annotated[float, Field(ge=0, le=1, description="probability of it")]
    return Annotated[_plain(hint), Field(description=words)]


def _plain(hint: Any) -> Any:
    """A type of Kornia's as YAML has it: numbers for tensors, names for enumerations, tuples for lists."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        # Of options that are known at run time alone.
        return reduce(or_, dict.fromkeys(map(_plain, _simplest(inner))))
    if hint is torch.Tensor:
        return _NUMBERS
    if _is_enumeration(hint):
        return Literal[tuple(member.name.lower() for member in hint)]
    if origin is tuple:
        return tuple[tuple(item if item is ... else _plain(item) for item in inner)]  # type: ignore[misc]
    if origin in (list, Sequence):
        return tuple.__class_getitem__((_plain(inner[0]), ...))
    return hint


_NUMBERS = tuple[float, ...]


def _simplest(options: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of several ways to say the same: names and not their numbers, numbers and not a tensor of them."""
    if any(map(_is_enumeration, options)):
        return tuple(option for option in options if option not in (str, int))
    others = tuple(option for option in options if option is not torch.Tensor)
    return others if set(others) - {type(None)} else options


def _is_enumeration(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Enum)


def _default(default: Any, hint: Any) -> Any:
    """Names of enumerations as YAML has them."""
    if not any(map(_is_enumeration, get_args(hint))):
        return default
    return (default.name if isinstance(default, Enum) else str(default)).lower()


def _for_kornia(parameters: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    """Numbers become a tensor where Kornia takes nothing else."""
    tensors = {key for key, hint in hints.items() if torch.Tensor in _simplest(get_args(hint) or (hint,))}
    return {
        key: torch.tensor(value) if key in tensors and isinstance(value, tuple) else value
        for key, value in parameters.items()
    }


def _meanings(base: type) -> dict[str, str]:
    """Kornia's words for each argument."""
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", inspect.cleandoc(base.__doc__ or ""), re.MULTILINE)
    return {name: " ".join(words.split()).removesuffix(".") for name, words in found}


def _summary(base: type) -> str:
    """Kornia's own sentence about it."""
    first = inspect.cleandoc(base.__doc__ or "").split("\n\n")[0]
    return f"Kornia's {base.__name__}: {' '.join(first.split())}"
