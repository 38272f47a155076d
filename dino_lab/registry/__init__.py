"""Names for components: where they come from, and the parameters that each accepts.

`from dino_lab.registry import register` is all that a component needs. Parameters that several components
share are declared once, in a class derived from `ParameterGroup`, and stand flat among the keys of each whose
constructor has an argument of the type `Flat[...]`; a plugin may use groups of its own and those of this
package, such as `EvaluatorOptions`. Each parameter has a description, `Field(description=...)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_lab.registry.parameters import EvaluatorOptions, Flat, ParameterGroup, Params
    from dino_lab.registry.registration import (
        ComponentError,
        Entry,
        Registry,
        register,
        registry,
        suggest,
    )

_PARAMETERS = ["EvaluatorOptions", "Flat", "ParameterGroup", "Params"]
__all__ = [
    "ComponentError",
    "Entry",
    "EvaluatorOptions",
    "Flat",
    "ParameterGroup",
    "Params",
    "Registry",
    "register",
    "registry",
    "suggest",
]


def __getattr__(name: str) -> Any:
    """Import on demand: the names of components are listed without Pydantic."""
    if name in _PARAMETERS:
        return getattr(import_module("dino_lab.registry.parameters"), name)
    if name in __all__:
        return getattr(import_module("dino_lab.registry.registration"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
