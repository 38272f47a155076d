"""Many tensors, each multiplied by a number of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from dino_lab.kernels import gpu

PART = 16_384  # numbers of one tensor that a program multiplies


@torch.no_grad()
def scale_each(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """Multiply each tensor in place by its number in `factors` [P], which stay on their device.

    On a GPU in one launch; `torch._foreach_mul_` with a list of numbers on a GPU makes one a tensor.
    """
    if gpu.runs_triton(factors.device) and all(map(_is_plain, tensors)):
        fused(tensors, factors)
    else:
        torch._foreach_mul_(list(tensors), list(factors.unbind()))


def fused(tensors: Sequence[Tensor], factors: Tensor) -> None:
    """As `scale_each`, by one of Triton's kernels, of dense float32 tensors."""
    from dino_lab.kernels import triton_step

    sizes = tuple(tensor.numel() for tensor in tensors)
    counts, owners, parts = _table(sizes, factors.device)
    addresses = gpu.moved(torch.tensor([tensor.data_ptr() for tensor in tensors]), factors.device)
    gpu.launch(
        triton_step.scale_tensors,
        (len(owners),),
        *(factors.float(), addresses, counts, owners, parts),
        PART=PART,
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and torch.ops.aten.is_non_overlapping_and_dense(tensor)


@lru_cache(maxsize=8)
def _table(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, and for each program its tensor and which part of it: the same in every step."""
    counts = torch.tensor(sizes)
    programs = -(-counts // PART)
    owners = torch.arange(len(sizes)).repeat_interleave(programs)
    parts = torch.arange(len(owners)) - (programs.cumsum(0) - programs)[owners]
    counts, owners, parts = (gpu.moved(column, device) for column in (counts, owners.int(), parts.int()))
    return counts, owners, parts
