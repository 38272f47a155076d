"""Crops on any device: one operation after the other on all of them, without a wait for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_lab.kernels.crops.blur import gaussian_blur
from dino_lab.kernels.crops.colour import grayscale, jitter, solarize
from dino_lab.kernels.crops.resize import flip, resample
from dino_lab.kernels.crops.rotate import rotate
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.types import Images, WholeImages


def make(images: Images, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """The crops float32 [V, B, C, size, size] in 0..1 that were sampled of images uint8 [B, C, H, W].

    Images of many sizes are cut one after the other. `largest_radius` is that of the blur's kernels, in
    pixels.
    """
    sampled = sampled.to(images.device)
    assert sampled.boxes is not None
    flipped = torch.zeros_like(sampled.boxes[..., 0], dtype=torch.bool)
    flipped = flipped if sampled.flipped is None else sampled.flipped
    if isinstance(images, WholeImages):
        each = (
            resample(image[None].float() / 255, sampled.boxes[:, i : i + 1], flipped[:, i : i + 1], size)
            for i, image in enumerate(images)
        )
        crops = torch.cat(list(each), dim=1)
    else:
        crops = resample(images.float() / 255, sampled.boxes, flipped, size)
    return _change(crops.flatten(0, 1), sampled.flat(), largest_radius).view_as(crops)


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """Crops float32 [V * B, C, H, W] in 0..1 after the pass that was sampled, which cuts none."""
    each = sampled.to(crops.device).flat()
    x = crops.clone()
    if each.flipped is not None:
        x = flip(x, each.flipped)
    return _change(x, each, largest_radius)


def _change(x: Tensor, each: SampledParameters, largest_radius: int) -> Tensor:
    if each.angle is not None:
        x = rotate(x, each.angle)
    if each.blends is not None and each.hue_shift is not None:
        x = jitter(x, each.blends, each.hue_shift)
    if each.grey is not None:
        x = grayscale(x, each.grey)
    if each.blurred is not None and each.sigma is not None:
        x = gaussian_blur(x, each.sigma, each.blurred, largest_radius)
    if each.solarized is not None:
        x = solarize(x, each.solarized)
    return x
