"""Names for components: where they come from, and the parameters that each accepts.

`from dino_lab.registry import register` is all that a component needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_lab.registry.registration import (
        ComponentError,
        Entry,
        Params,
        Registry,
        params_of,
        register,
        registry,
        suggest,
    )

__all__ = ["ComponentError", "Entry", "Params", "Registry", "params_of", "register", "registry", "suggest"]


def __getattr__(name: str) -> Any:
    """Import on demand: the names of components are listed without Pydantic."""
    if name in __all__:
        return getattr(import_module("dino_lab.registry.registration"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
