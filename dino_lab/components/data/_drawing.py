"""What drawn data share: coordinates, numbers that are hashes of where they are used, their splits."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._masks import boxes
from dino_lab.components.data._storage import Resident, Split

Pictures = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
BATCH = 500  # images that are drawn at once


class Drawn(Labelled):
    """Images that depend on (split, index) alone, and are all drawn into memory."""

    def annotated(self, split: Split, indices: Tensor) -> Pictures:
        """Images with what is in them, on the CPU, for int64 indices [N] of any size.

        Returns images uint8 [N, 3, H, W]; labels int64 [N]; object masks bool [N, H, W]; part masks uint8
        [N, H, W], 0 background and 1, 2, ... the parts in the order they are drawn; boxes int64 [N, 4] as x0,
        y0, x1, y1 in pixels, the last two exclusive.
        """
        images, labels, parts = self._draw_all(split, indices.cpu())
        masks = parts > 0
        return images, labels, masks, parts, boxes(masks)

    def _split(self, split: Split, count: int, device: torch.device) -> Resident:
        images, labels, _ = self._draw_all(split, torch.arange(count))
        return Resident(images.to(device), labels.to(device))

    def _draw_all(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        drawn = [self._draw(split, some) for some in indices.split(BATCH)]
        images, labels, parts = (torch.cat(column) for column in zip(*drawn, strict=True))
        return images, labels, parts

    def _draw(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8 [N, 3, H, W], labels [N] and part masks uint8 [N, H, W]."""
        raise NotImplementedError


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
