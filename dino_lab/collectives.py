"""Batch statistics over every process of a run; on one process `mean` and `gather` are the identity.

Components that use statistics of the whole batch (a centre, Sinkhorn, keys of a contrastive loss) call
these, and nothing else in the package talks to other processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, elementwise; backward takes the mean of their gradients.

    So weights whose gradients are averaged over processes get the gradient of the whole batch.
    """
    return _Mean.apply(x) if _several() else x


def gather(x: Tensor) -> Tensor:
    """`x` of every process, joined along dimension 0; backward adds up what every process asks of its part.

    So weights whose gradients are averaged over processes get the gradient of the mean of their losses.
    """
    return _Gather.apply(x) if _several() else x


def rank() -> int:
    """The number of this process, which is its place in `gather`; 0 where there is one."""
    return distributed.get_rank() if _several() else 0


def processes() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if _several() else 1


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x)
        return x / distributed.get_world_size()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _Mean.forward(context, gradient)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(processes())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.chunk(processes())[rank()]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
