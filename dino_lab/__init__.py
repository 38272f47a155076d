"""A declarative experiment runner for self-supervised vision in the DINO family.

load(file)        read and check a spec
run(spec)         train it, or continue it
open_run(folder)  open a trained run
evaluate(target)  score a run, an exported file or a model of timm
sweep(file)       train and compare all variants of an ablation
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino_lab.api import evaluate, load, open_run, run, sweep

__version__ = "0.2.0"
__all__ = ["evaluate", "load", "open_run", "run", "sweep"]


def __getattr__(name: str) -> Any:
    """Import on demand, since torch takes seconds."""
    if name in __all__:
        return getattr(import_module("dino_lab.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
