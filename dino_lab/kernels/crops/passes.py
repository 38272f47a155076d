"""One pass over crops, by whichever kernels the device has: Numba's, Triton's, or torch's, compiled."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from dino_lab.kernels import gpu
from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.kernels.crops.resize import resample
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.types import Images, WholeImages

COLOURS = (1, 3)  # channels of which the kernels know what a colour is: grey, RGB


def make(x: Images, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """Crops float32 [V, B, C, size, size] in 0..1 of images uint8 [B, C, H, W], or of many sizes.

    Where they are neither grey nor RGB, each band is made as a grey image. Of crops float32 [V * B, C, H,
    W] in 0..1, parts that were cut again. `largest_radius` is that of the blur's kernels, in pixels.
    """
    if isinstance(x, WholeImages) or x.dtype == torch.uint8:
        C = x.channels if isinstance(x, WholeImages) else x.shape[1]
        if C in COLOURS:
            return _kernels(x).make(x, sampled, size, largest_radius)
        bands = x.bands() if isinstance(x, WholeImages) else x.flatten(0, 1)[:, None]
        crops = _kernels(x).make(bands, sampled.for_each_band(C), size, largest_radius)
        return crops.view(len(crops), -1, C, size, size)
    assert sampled.boxes is not None
    boxes = sampled.boxes.to(x.device)
    none = torch.zeros_like(boxes[..., 0], dtype=torch.bool)
    cut = resample(x, boxes.reshape(1, -1, 4), none.reshape(1, -1), size)[0]
    rest = SampledParameters(**{**vars(sampled), "boxes": None})
    return change(cut, rest, largest_radius).unflatten(0, boxes.shape[:2])


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """Crops float32 [V * B, C, H, W] in 0..1 after a pass that cuts none, as new ones."""
    kernels = _kernels(crops) if crops.shape[-1] == crops.shape[-2] else by_batch
    if (C := crops.shape[1]) in COLOURS:
        return kernels.change(crops, sampled, largest_radius)
    bands = crops.flatten(0, 1)[:, None]
    return kernels.change(bands, sampled.for_each_band(C), largest_radius).view_as(crops)


def _kernels(x: Images) -> ModuleType:
    """What makes crops where x lies; the images that are no squares are left to torch."""
    if x.device.type == "cpu":
        return by_crop
    if gpu.runs_triton(x.device):
        return import_module("dino_lab.kernels.crops.by_program")
    # On `meta` nothing is computed; elsewhere importing torch's compiler takes seconds.
    return by_batch if x.device.type == "meta" else import_module("dino_lab.kernels.crops.by_graph")
