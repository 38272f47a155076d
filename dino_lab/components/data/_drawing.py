"""What drawn data are made from: coordinates, and numbers that are hashes of where they are used."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(size: int) -> tuple[Tensor, Tensor]:
    """Coordinates of the centres of pixels: x [1, 1, W] and y [1, H, 1]."""
    line = (2 * torch.arange(size) + 1) / size - 1
    return line.view(1, 1, size), line.view(1, size, 1)


def uniforms(seed: int, split: int, indices: Tensor, count: int, stream: int) -> Tensor:
    """Numbers in [0, 1), float32 [N, count], each a hash of (seed, split, stream, index, position) alone."""
    key = _mix(_mix(torch.tensor([seed * 8 + split * 4 + stream])) + indices)  # [N]
    bits = _mix(key[:, None] + torch.arange(1, count + 1) * 0x9E3779B9)
    return (bits >> 8).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits without visible pattern (lowbias32 of C. Wellons' hash prospector)."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)
