"""Crops where none of our kernels run, as on a GPU without Triton: torch's operations as one graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException

from dino_lab.kernels.crops import by_batch
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.types import Images

logger = logging.getLogger("dino_lab")
_plain: set[Hashable] = set()  # what could not be compiled


def make(images: Images, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """As `by_batch.make`; images of many sizes, each of which would be a graph of its own, as they are."""
    if not isinstance(images, Tensor):
        return by_batch.make(images, sampled, size, largest_radius)
    return _run(by_batch.make, images, sampled, size, largest_radius)


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """As `by_batch.change`."""
    return _run(by_batch.change, crops, sampled, largest_radius)


def _run(function: Callable[..., Tensor], x: Tensor, sampled: SampledParameters, *numbers: int) -> Tensor:
    """The compiled function, or the function itself where it cannot be compiled for arguments like these."""
    there = sampled.to(x.device)  # outside of the graph: from memory of the host
    drawn = tuple(name for name, part in vars(there).items() if part is not None)
    case = (function, x.device, drawn, numbers)
    if case in _plain:
        return function(x, there, *numbers)
    try:
        return _compiled(function)(x, there, *numbers)
    except TorchDynamoException as error:
        _plain.add(case)
        reason = str(error).strip().partition("\n")[0]
        logger.warning("crops are made without torch.compile on %s: %s", x.device, reason)
        return function(x, there, *numbers)


@cache
def _compiled(function: Callable[..., Tensor]) -> Any:
    return torch.compile(function, fullgraph=True, dynamic=False)
