"""Colour operations of torchvision on crops [N, C, H, W] in 0..1, with strengths of every image's own."""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)


def luma(x: Tensor) -> Tensor:
    """Brightness as seen, [N, 1, H, W] (ITU-R BT.601); a grey image is its own."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.chunk(3, dim=1)
    return torch.add(torch.add(0.299 * red, green, alpha=0.587), blue, alpha=0.114)


def blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Give factor * x + (1 - factor) * other, in 0..1, the operation (int64 [N]) and factor [N] by image.

    `other` is black (brightness), the mean of the luma (contrast) or the luma (saturation). A factor of 1
    changes nothing.
    """
    factor, operation = factor.view(-1, 1, 1, 1), operation.view(-1, 1, 1, 1)
    grey = luma(x)
    rest = 1 - factor
    mean = grey.mean(dim=(2, 3), keepdim=True) * (rest * (operation == CONTRAST))
    other = torch.addcmul(mean, grey, rest * (operation == SATURATION))
    return torch.addcmul(other, x, factor).clamp_(0, 1)


def grayscale(x: Tensor, chosen: Tensor) -> Tensor:
    """Take the colour from the images `chosen`, bool [N]."""
    if x.shape[1] == 1:
        return x
    return blend(x, torch.full_like(chosen, SATURATION, dtype=torch.int64), 1 - chosen.to(x))


def shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of RGB images by `turns` [N] of the colour circle; value and chroma stay (Smith, 1978).

    With red, green, blue scaled to span 0..1, the hue in sixths of a turn is 1 + green + blue - red where
    green >= blue, and the negative of that elsewhere: HSV's three cases in one line.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.chunk(3, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - lowest
    sixths = 1 + (green + blue - red - lowest) / chroma.clamp(min=1e-8)
    hue = torch.copysign(sixths / 6, green - blue) + turns.view(-1, 1, 1, 1)
    offset = (3 - 2 * torch.arange(3, device=x.device).view(1, 3, 1, 1)) / 6
    away = hue + offset  # in turns, from the hue at which the channel is least
    away.sub_(away.round()).abs_()
    return torch.addcmul(value, chroma, away.mul_(-6).add_(2).clamp_(0, 1), value=-1)


def jitter(x: Tensor, factors: Tensor, turns: Tensor, keys: Tensor) -> Tensor:
    """Brightness, contrast, saturation by `factors` [N, 3] and hue by `turns` [N], in each image's own order.

    The order is that of `keys` [N, 4] (brightness, contrast, saturation, hue). Hue is worked out once, for
    all images together: each of the other three runs once before and once after it, one of the times with
    factor 1. So no image has to be picked out, which would make a GPU wait.
    """
    sorted_keys, order = keys[:, :3].sort(dim=1)
    factors = factors.gather(1, order)
    before = sorted_keys < keys[:, 3:]
    for slot in range(3):
        x = blend(x, order[:, slot], torch.where(before[:, slot], factors[:, slot], 1.0))
    x = shift_hue(x, turns)
    for slot in range(3):
        x = blend(x, order[:, slot], torch.where(before[:, slot], 1.0, factors[:, slot]))
    return x


def solarize(x: Tensor, chosen: Tensor) -> Tensor:
    """Invert what is at least half bright, in the images `chosen`, bool [N]."""
    # 1 - x is the smaller one exactly there; 2 - x never is.
    return torch.minimum(x, (2 - chosen.to(x)).view(-1, 1, 1, 1) - x)
