"""Launches of Triton's kernels, and copies that the host does not wait for."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

BLOCK = 1024  # numbers that a program works on at once
WARPS = 8


def runs_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run there; torch's builds for CUDA on Linux come with Triton."""
    return device.type == "cuda" and _has_triton()


def launches_take_time(device: torch.device) -> bool:
    """Whether few large operations there are worth more than operations whose numbers stay in a cache."""
    return device.type != "cpu"


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument; Triton asks for the current one."""
    device = arguments[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*arguments, **constants, BLOCK=BLOCK, num_warps=WARPS)


def moved(small: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on the device; to a GPU from pinned memory, for which the host does not wait."""
    if small.device == device:
        return small
    return small.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else small.to(device)
