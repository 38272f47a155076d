"""Which crops an operation happens to, and the parameters that say so."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.registry.ranges import Probability

# How likely an operation is: for all views of a group, or for each of them.
Probabilities = Annotated[
    Probability | tuple[Probability, ...],
    Field(description="probability of it; a list has one for each view of the group"),
]


def chosen(probabilities: float | tuple[float, ...], N: int) -> Tensor:
    """Bool [N]: true with a probability; of several probabilities, each is that of an equal part of the N."""
    each = probabilities if isinstance(probabilities, tuple) else (probabilities,)
    rows = torch.rand(N).view(len(each), -1)
    return torch.stack([row < p for row, p in zip(rows, each, strict=True)]).flatten()


def between(low: float, high: float, share: Tensor) -> Tensor:
    """The number that lies `share` of the way from `low` to `high`."""
    return low + (high - low) * share
