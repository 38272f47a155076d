"""Which crops an operation happens to, and the parameters that say so."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

# How likely something is: of all views of a group, or of each of them.
Probability = Annotated[float, Field(ge=0, le=1)]
Probabilities = Probability | tuple[Probability, ...]


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = pair
    if low > high:
        raise ValueError(f"is a pair (low, high) with low <= high, got ({low:g}, {high:g})")
    return pair


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


def chosen(probabilities: float | tuple[float, ...], N: int) -> Tensor:
    """Bool [N]: true with a probability; of several probabilities, each is that of an equal part of the N."""
    each = probabilities if isinstance(probabilities, tuple) else (probabilities,)
    rows = torch.rand(N).view(len(each), -1)
    return torch.stack([row < p for row, p in zip(rows, each, strict=True)]).flatten()


def between(low: float, high: float, share: Tensor) -> Tensor:
    """The number that lies `share` of the way from `low` to `high`."""
    return low + (high - low) * share
