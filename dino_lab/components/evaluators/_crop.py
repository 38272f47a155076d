"""Random crops for evaluators."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RATIOS = (3 / 4, 4 / 3)  # width over height, drawn evenly in its logarithm


def random_crops(images: Tensor, least_area: float, size: int, generator: torch.Generator) -> Tensor:
    """A crop of each image uint8 [B, C, H, W], bicubically resized, half of them flipped: [B, C, size, size].

    Its share of the area is drawn evenly from `least_area` to 1; sides longer than the image are cut to it.
    """
    H, W = images.shape[2:]
    low, high = map(math.log, RATIOS)
    crops = []
    for image, draw in zip(images, torch.rand(len(images), 5, generator=generator).tolist(), strict=True):
        area = H * W * (least_area + (1 - least_area) * draw[0])
        ratio = math.exp(low + (high - low) * draw[1])
        height = min(H, max(1, round(math.sqrt(area / ratio))))
        width = min(W, max(1, round(math.sqrt(area * ratio))))
        top, left = int(draw[2] * (H - height + 1)), int(draw[3] * (W - width + 1))
        crop = image[None, :, top : top + height, left : left + width].float()
        crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        crops.append(crop.flip(3) if draw[4] < 0.5 else crop)
    return torch.cat(crops).round().clamp(0, 255).to(torch.uint8)
