"""Views on a GPU: operation by operation, all crops at once, and no value that the host has to wait for."""

from __future__ import annotations

from torch import Tensor

from dino_lab.components.augment._blur import gaussian_blur
from dino_lab.components.augment._colour import grayscale, jitter, solarize
from dino_lab.components.augment._crop import resample
from dino_lab.components.augment._draw import Drawn
from dino_lab.components.augment._rotate import turn


def make(images: Tensor, drawn: Drawn, size: int, reach: int) -> Tensor:
    """The crops float32 [V, B, C, size, size] in 0..1 that were drawn of images uint8 [B, C, H, W].

    `reach` is the blur's, in pixels.
    """
    crops = resample(images.float() / 255, drawn.boxes, drawn.flipped, size)
    x, each = crops.flatten(0, 1), drawn.flat()
    if each.angle is not None:
        x = turn(x, each.angle)
    if each.blends is not None and each.turns is not None:
        x = jitter(x, each.blends, each.turns)
    if each.grey is not None:
        x = grayscale(x, each.grey)
    if each.blurred is not None and each.sigma is not None:
        x = gaussian_blur(x, each.sigma, each.blurred, reach)
    if each.solarized is not None:
        x = solarize(x, each.solarized)
    return x.view_as(crops)
