"""Views on a GPU: one operation after the other on all crops, without a synchronisation with the host."""

from __future__ import annotations

from torch import Tensor

from dino_lab.components.augment._blur import gaussian_blur
from dino_lab.components.augment._colour import grayscale, jitter, solarize
from dino_lab.components.augment._crop import resample
from dino_lab.components.augment._rotate import rotate
from dino_lab.components.augment._sampling import SampledParameters


def make(images: Tensor, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """The crops float32 [V, B, C, size, size] in 0..1 that were sampled of images uint8 [B, C, H, W].

    `largest_radius` is that of the blur's kernels, in pixels.
    """
    crops = resample(images.float() / 255, sampled.boxes, sampled.flipped, size)
    x, each = crops.flatten(0, 1), sampled.flat()
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
    return x.view_as(crops)
