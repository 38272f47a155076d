"""Gaussian blur with a standard deviation of every image's own, as two matrix products."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_blur(x: Tensor, sigma: Tensor, chosen: Tensor, largest: float) -> Tensor:
    """Blur the `chosen` (bool [N]) of x [N, C, H, W] by `sigma` [N] pixels, at most `largest`; edges repeat.

    The kernel ends at four times the largest sigma.
    """
    radius = math.ceil(4 * largest)
    taps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    kernel = torch.where(chosen[:, None], kernel, (taps == 0).to(kernel))  # [N, taps]
    vertical = _matrices(kernel, taps, x.shape[2])  # [N, H, H]
    horizontal = vertical if x.shape[2] == x.shape[3] else _matrices(kernel, taps, x.shape[3])
    N, C, H, W = x.shape
    x = (x.reshape(N, C * H, W) @ horizontal.mT).view(N, C, H, W)
    return vertical[:, None] @ x


def _matrices(kernel: Tensor, taps: Tensor, size: int) -> Tensor:
    """Kernels [N, taps] as matrices [N, size, size] that convolve a line whose end pixels repeat."""
    position = torch.arange(size, device=taps.device)
    source = (position[:, None] + taps).clamp(0, size - 1)  # [size, taps]
    hits = (source.T[:, :, None] == position).to(kernel)  # [taps, size, size]
    return (kernel @ hits.flatten(1)).view(-1, size, size)
