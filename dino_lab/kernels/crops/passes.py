"""One pass over crops, by whichever kernels the device has: Numba's, Triton's, or torch's own operations."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.kernels.crops.resize import resample
from dino_lab.kernels.crops.sampled import SampledParameters


def make(x: Tensor, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """Crops float32 [V, B, C, size, size] in 0..1 of images uint8 [B, C, H, W].

    Of crops float32 [V * B, C, H, W] in 0..1, parts that were cut again. `largest_radius` is that of the
    blur's kernels, in pixels.
    """
    if x.dtype == torch.uint8:
        sampled = sampled.to(x.device)
        if x.device.type == "cpu":
            return by_crop.make(x, sampled, size, largest_radius)
        return by_batch.make(x, sampled, size, largest_radius)
    assert sampled.boxes is not None
    boxes = sampled.boxes.to(x.device)
    none = torch.zeros_like(boxes[..., 0], dtype=torch.bool)
    cut = resample(x, boxes.reshape(1, -1, 4), none.reshape(1, -1), size)[0]
    rest = SampledParameters(**{**vars(sampled), "boxes": None})
    return change(cut, rest, largest_radius).unflatten(0, boxes.shape[:2])


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """Crops float32 [V * B, C, H, W] in 0..1 after a pass that cuts none, as new ones."""
    sampled = sampled.to(crops.device)
    if crops.device.type == "cpu" and crops.shape[-1] == crops.shape[-2]:
        return by_crop.change(crops, sampled, largest_radius)
    return by_batch.change(crops.clone(), sampled, largest_radius)
