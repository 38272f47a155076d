"""Colour operations of torchvision on crops [N, C, H, W] in 0..1, with a strength for each image.

Crops are changed in place, because these operations are bound by memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION = range(3)


def luma(x: Tensor) -> Tensor:
    """Luma [N, 1, H, W] (ITU-R BT.601); of a grey image the image itself."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.chunk(3, dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend(x: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Blend: factor * x + (1 - factor) * other, in 0..1; operation int64 [N] and factor [N] of each image.

    `other` is black (brightness), the mean of the luma (contrast) or the luma (saturation). A factor of 1
    changes nothing.
    """
    rest = 1 - factor
    parts = [factor, rest * (operation == CONTRAST), rest * (operation == SATURATION)]
    return _blend(x, torch.stack(parts, dim=1))


def _blend(x: Tensor, parts: Tensor) -> Tensor:
    """The sum of x, the mean of its luma and its luma, times `parts` [N, 3], in 0..1."""
    of_x, of_mean, of_luma = parts.view(-1, 3, 1, 1, 1).unbind(1)
    grey = luma(x)
    other = torch.addcmul(grey.mean(dim=(2, 3), keepdim=True) * of_mean, grey, of_luma)
    return x.mul_(of_x).add_(other).clamp_(0, 1)


def grayscale(x: Tensor, chosen: Tensor) -> Tensor:
    """Remove the colour of the images `chosen`, bool [N]."""
    if x.shape[1] == 1:
        return x
    return blend(x, torch.full_like(chosen, SATURATION, dtype=torch.int64), 1 - chosen.to(x))


def shift_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Shift the hue of RGB images by `shift` [N], in turns of the colour circle (HSV: Smith, 1978).

    Value and chroma stay.

    With red, green, blue scaled to span 0..1, the hue in sixths of a turn is 1 + green + blue - red where
    green >= blue, and the negative of that elsewhere: HSV's three cases in one line.
    """
    if x.shape[1] == 1:
        return x
    red, green, blue = x.chunk(3, dim=1)
    value = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - lowest
    hue = (green + blue).sub_(red).sub_(lowest).div_(chroma.clamp(min=1e-8)).add_(1).mul_(1 / 6)
    hue = torch.copysign(hue, green - blue).add_(shift.view(-1, 1, 1, 1))
    offset = (3 - 2 * torch.arange(3, device=x.device).view(1, 3, 1, 1)) / 6
    away = torch.add(hue, offset, out=x)  # in turns, from the hue at which the channel is least
    away.sub_(away.round()).abs_().mul_(-6).add_(2).clamp_(0, 1)
    return torch.addcmul(value, chroma, away, value=-1, out=x)


def jitter(x: Tensor, blends: Tensor, hue_shift: Tensor) -> Tensor:
    """Brightness, contrast and saturation by `blends` [N, 6, 3], and between them the hue by `hue_shift` [N].

    The hue is computed once for all images. Each of the other three operations runs before and after it, once
    without effect, so that images with another order need no selection, for which a GPU would wait.
    """
    parts = blends.unbind(1)
    for part in parts[:3]:
        x = _blend(x, part)
    x = shift_hue(x, hue_shift)
    for part in parts[3:]:
        x = _blend(x, part)
    return x


def in_order(factors: Tensor, keys: Tensor) -> Tensor:
    """The argument `blends` [..., 6, 3] of `jitter` for `factors` [..., 3] in the order of `keys` [..., 4].

    Factors are of brightness, contrast, saturation, keys of these and hue; the result says how much of the
    image, of the mean of its luma and of its luma is there after each blend.
    """
    sorted_keys, order = keys[..., :3].sort(dim=-1)
    factors = factors.gather(-1, order)
    before = sorted_keys < keys[..., 3:]
    factors = torch.where(torch.stack([before, ~before]), factors, 1.0)  # [2, ..., 3]
    rest = 1 - factors
    parts = torch.stack([factors, rest * (order == CONTRAST), rest * (order == SATURATION)])
    return parts.movedim((1, -1, 0), (-3, -2, -1)).flatten(-3, -2)


def solarize(x: Tensor, chosen: Tensor) -> Tensor:
    """Invert values of at least 1/2 in the images `chosen`, bool [N]."""
    # 1 - x is the smaller one exactly there; 2 - x never is.
    return torch.minimum(x, (2 - chosen.to(x)).view(-1, 1, 1, 1) - x)
