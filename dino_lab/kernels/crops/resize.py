"""Random resized crops: a box for each image, resized as Pillow does (bicubic, antialiased)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEW = 48  # pixels of a side up to which each gets a weight, most of which are not zero
TRIES = 10  # torchvision.transforms.RandomResizedCrop
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # of width to height


def sample_boxes(
    shape: tuple[int, ...],
    height: int | Tensor,
    width: int | Tensor,
    scale: tuple[float, float],
    generator: torch.Generator | None = None,
) -> Tensor:
    """Boxes [*shape, 4] of whole pixels: top, left, height, width; by torch's generator where none is given.

    `height` and `width` are those of the image, or int64 [*shape] of the image of each box.

    The area's share of the image is uniform in `scale`, the logarithm of the aspect ratio is uniform; of ten
    tries the first that fits counts, and where none fits the largest centred box with an allowed ratio
    (torchvision.transforms.RandomResizedCrop.get_params; Szegedy et al., arXiv 1409.4842, Sec. 6).
    """
    uniform = torch.rand(4, TRIES, *shape, generator=generator)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform[0])
    ratio = torch.exp(LOG_RATIO[0] + (LOG_RATIO[1] - LOG_RATIO[0]) * uniform[1])
    h, w = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (h > 0) & (h <= height) & (w > 0) & (w <= width)
    countdown = torch.arange(TRIES, 0, -1, dtype=torch.uint8)
    left_over = (fits * countdown.view(-1, *[1] * len(shape))).amax(dim=0)  # tries from the first that fits
    first = (TRIES - left_over.clamp(min=1).long()).expand(4, 1, *shape)
    h, w, *share = torch.stack([h, w, uniform[2], uniform[3]]).gather(1, first).squeeze(1)
    top = (share[0] * (height - h + 1)).floor().clamp(max=height - 1)
    left = (share[1] * (width - w + 1)).floor().clamp(max=width - 1)
    sides = (side if isinstance(side, Tensor) else torch.full((), side) for side in (height, width))
    none, centred = left_over == 0, _centred(*sides)
    boxes = [torch.where(none, d.to(c), c) for c, d in zip((top, left, h, w), centred, strict=True)]
    return torch.stack(boxes).movedim(0, -1)


def flip(x: Tensor, chosen: Tensor) -> Tensor:
    """Left and right exchanged in the `chosen` (bool [N]) of x [N, C, H, W]."""
    return torch.where(chosen.view(-1, 1, 1, 1), x.flip(-1), x)


def _centred(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest box in the middle with an allowed ratio, int64."""
    h = torch.minimum(height, (width.double() / math.exp(LOG_RATIO[0])).round().long())
    w = torch.minimum(width, (height.double() * math.exp(LOG_RATIO[1])).round().long())
    return (height - h) // 2, (width - w) // 2, h, w


def resample(images: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Boxes [V, B, 4] of images [B, C, H, W] in 0..1 as crops [V, B, C, size, size], mirrored by `flip`.

    As Pillow's `crop` and `resize(BICUBIC)`, but that its levels are whole. A crop with resize is linear and
    separable: rows of the crop = `weights` @ rows of the image. With one weight matrix for each image, all
    crops of a batch are two matrix products, whatever their boxes.
    """
    B, C, H, W = images.shape
    V = len(boxes)
    top, left, h, w = boxes.transpose(0, 1).unbind(-1)  # each [B, V]
    vertical = weights(top, h, H, size, torch.zeros_like(flip.mT))  # [B, V, size, H]
    horizontal = weights(left, w, W, size, flip.mT)  # [B, V, size, W]
    # Clamped after each direction, the horizontal one first, as Pillow's whole grey levels are: the cubic
    # overshoots at edges.
    x = images.reshape(B, C * H, W) @ horizontal.reshape(B, V * size, W).mT
    x = x.clamp_(0, 1).view(B, C, H, V, size).permute(0, 3, 2, 1, 4).reshape(B * V, H, C * size)
    x = vertical.reshape(B * V, size, H) @ x
    x = x.clamp_(0, 1).view(B, V, size, C, size).permute(1, 0, 3, 2, 4)  # [V, B, C, size, size]
    return x.contiguous()


def weights(start: Tensor, length: Tensor, pixels: int, size: int, flip: Tensor) -> Tensor:
    """Matrices [*shape, size, pixels] that resize `length` pixels from `start` on; all of shape [*shape].

    Cubic convolution with a = -1/2 (Keys, 1981), widened by the factor of the reduction as Pillow does.
    """
    step = (length / size)[..., None]  # source pixels per target pixel
    target = torch.arange(size, device=start.device) + 0.5
    mirror = flip[..., None].to(step)
    target = target + mirror * (size - 2 * target)
    centre = start[..., None] + target * step  # [*shape, size]
    spread = step.clamp(min=1)
    if pixels <= FEW:  # no sorting of weights into places
        source = torch.arange(pixels, device=start.device).to(step)
    else:
        taps = torch.arange(math.ceil(4 * max(1.0, pixels / size)) + 1, device=start.device)
        source = (centre - 2 * spread).floor()[..., None] + taps  # [*shape, size, taps]
    begin, end = start[..., None, None], (start + length)[..., None, None]
    weight = _cubic((source + (0.5 - centre[..., None])).div_(spread[..., None]))
    weight.mul_((source >= begin) & (source < end))
    weight.div_(weight.sum(-1, keepdim=True))
    if pixels <= FEW:
        return weight
    # What lies outside the image has weight 0; it wraps into columns of its own, which are cut off.
    width = pixels + len(taps)
    matrix = weight.new_zeros(*source.shape[:-1], width)
    return matrix.scatter_(-1, source.long() % width, weight)[..., :pixels]


def _cubic(x: Tensor) -> Tensor:
    # As truncated powers: arithmetic in place, where torch.where would need three whole tensors.
    x = x.abs_()
    outer, inner = (2 - x).clamp_(min=0), (1 - x).clamp_(min=0)
    near = (1 - 2 * inner).mul_(inner).mul_(inner)
    return (outer - 1).mul_(outer).mul_(outer).mul_(0.5).add_(near)
