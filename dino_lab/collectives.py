"""Batch statistics over every process of a run; on one process `mean` and `gather` are the identity.

Components that use statistics of the whole batch (a centre, Sinkhorn, keys of a contrastive loss) call
these, and nothing else in the package talks to other processes.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, elementwise.

    Its gradient is that of `x` here: averaged over processes, as gradients are, that of the mean.
    """
    if not _several():
        return x
    total = x.detach().clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size() + (x - x.detach())


def gather(x: Tensor) -> Tensor:
    """`x` of every process, joined along dimension 0; no gradient flows to other processes."""
    if not _several():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    parts[distributed.get_rank()] = x
    return torch.cat(parts)


def rank() -> int:
    """The number of this process, which is its place in `gather`; 0 where there is one."""
    return distributed.get_rank() if _several() else 0


def processes() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if _several() else 1


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
