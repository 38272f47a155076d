"""Batch statistics over every process of a run; on one process each function is the identity.

Components that use statistics of the whole batch (a centre, Sinkhorn, keys of a contrastive loss) call
these, and nothing else in the package talks to other processes.
"""

from __future__ import annotations

import torch
import torch.distributed as distributed
from torch import Tensor


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, elementwise."""
    if not _several():
        return x
    x = x.clone()
    distributed.all_reduce(x)
    return x / distributed.get_world_size()


def gather(x: Tensor) -> Tensor:
    """`x` of every process, joined along dimension 0; no gradient flows to other processes."""
    if not _several():
        return x
    parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, x.contiguous())
    parts[distributed.get_rank()] = x
    return torch.cat(parts)


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
