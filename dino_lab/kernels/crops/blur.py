"""Gaussian blur, as two matrix products, with a standard deviation for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WHOLE = 48  # pixels of a side up to which a line is one block: most of its matrix is then in use
BLOCK = 16  # pixels that one matrix makes of a longer line


def kernel_radius(largest_sigma: float) -> int:
    """Pixels from the middle to the end of a kernel whose sigma is at most `largest_sigma`."""
    return math.ceil(4 * largest_sigma)


def gaussian_blur(x: Tensor, sigma: Tensor, chosen: Tensor, radius: int) -> Tensor:
    """Blur the `chosen` (bool [N]) of x [N, C, H, W] by `sigma` [N] pixels; edges repeat."""
    taps = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-0.5 * (taps / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    kernel = torch.where(chosen[:, None], kernel, (taps == 0).to(kernel))  # [N, taps]
    if max(x.shape[2:]) <= WHOLE:
        return _whole(x, kernel, taps)
    blocks = _block(kernel)
    return _columns(_rows(x, blocks, radius), blocks, radius)


def _whole(x: Tensor, kernel: Tensor, taps: Tensor) -> Tensor:
    """Small images: one matrix for a whole line."""
    N, C, H, W = x.shape
    vertical = _matrices(kernel, taps, H)  # [N, H, H]
    horizontal = vertical if H == W else _matrices(kernel, taps, W)
    x = (x.reshape(N, C * H, W) @ horizontal.mT).view(N, C, H, W)
    return vertical[:, None] @ x


def _matrices(kernel: Tensor, taps: Tensor, size: int) -> Tensor:
    """Kernels [N, taps] as matrices [N, size, size] that convolve a line whose end pixels repeat."""
    position = torch.arange(size, device=taps.device)
    source = (position[:, None] + taps).clamp(0, size - 1)  # [size, taps]
    hits = (source.T[:, :, None] == position).to(kernel)  # [taps, size, size]
    return (kernel @ hits.flatten(1)).view(-1, size, size)


def _block(kernel: Tensor) -> Tensor:
    """Kernels [N, taps] as matrices [N, BLOCK, BLOCK + taps - 1]: a block of pixels from those around it."""
    N, taps = kernel.shape
    length = BLOCK + taps
    # A row that is one number longer than the matrix is wide moves the kernel on by one with every line.
    line = F.pad(kernel, (0, BLOCK))[:, None].expand(N, BLOCK, length).reshape(N, -1)
    return line[:, : BLOCK * (length - 1)].view(N, BLOCK, length - 1)


def _rows(x: Tensor, blocks: Tensor, radius: int) -> Tensor:
    N, C, H, W = x.shape
    x = F.pad(x, (radius, radius + -W % BLOCK, 0, 0), mode="replicate")
    windows = x.unfold(3, blocks.shape[2], BLOCK)  # [N, C, H, W / BLOCK, window]
    return (windows.reshape(N, -1, blocks.shape[2]) @ blocks.mT).view(N, C, H, -1)[..., :W]


def _columns(x: Tensor, blocks: Tensor, radius: int) -> Tensor:
    N, C, H, W = x.shape
    x = F.pad(x, (0, 0, radius, radius + -H % BLOCK), mode="replicate")
    windows = x.unfold(2, blocks.shape[2], BLOCK).mT  # [N, C, H / BLOCK, window, W]
    return (blocks[:, None, None] @ windows).view(N, C, -1, W)[:, :, :H]
