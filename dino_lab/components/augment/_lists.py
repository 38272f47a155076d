"""Policies of the short names, whose lists of operations are written here and not in a spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dino_lab.components.augment._policy import Policy
from dino_lab.registry import registry
from dino_lab.registry.operations import operation


def policy(views: int, size: int, operations: Sequence[Any]) -> Policy:
    """The policy of a list of operations, each as `operation` reads it."""
    read = [operation(each) for each in operations]
    return Policy(views, size, [(params.name, registry.build("operation", params, size)) for params in read])
