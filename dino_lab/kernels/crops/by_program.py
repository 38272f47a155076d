"""Crops on a GPU, by Triton's kernels: a launch that cuts and colours, and two that blur what drew it."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_lab.kernels import gpu
from dino_lab.kernels.crops import triton_kernels as kernels
from dino_lab.kernels.crops.resize import flip
from dino_lab.kernels.crops.rotate import rotate
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.types import Images, WholeImages

# Columns of a crop's row of parameters, float32, but for the image's place, int64 in two of them.
BOX, FLIP, BLENDS, HUE, GREY, SOLARIZE, PLACE, SIZE, COLUMNS = 0, 4, 5, 23, 24, 25, 26, 28, 30


def make(images: Images, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """The crops float32 [V, B, C, size, size] in 0..1 that were sampled of images uint8 [B, C, H, W].

    Images may be of many sizes.

    `sampled` lies on the CPU; `largest_radius` is that of the blur's kernels, in pixels.
    """
    assert sampled.boxes is not None
    V, B = sampled.boxes.shape[:2]
    whole = images if isinstance(images, WholeImages) else WholeImages.of_one_size(images)
    crops = torch.empty(V, B, whole.channels, size, size, device=images.device)
    each = sampled.flat()
    if each.angle is None:
        _run(whole, crops.flatten(0, 1), each, largest_radius)
        return crops
    _run(whole, crops.flatten(0, 1), SampledParameters(boxes=each.boxes, flipped=each.flipped), 0)
    turned = rotate(crops.flatten(0, 1), each.angle.to(images.device))
    rest = SampledParameters(**{**vars(each), "boxes": None, "flipped": None, "angle": None})
    return _run(None, turned.contiguous(), rest, largest_radius).view_as(crops)


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """Crops float32 [V * B, C, size, size] in 0..1 after the pass that was sampled, which cuts none."""
    each = sampled.flat()
    x = crops
    if each.flipped is not None:
        x = flip(x, each.flipped.to(x.device))
    if each.angle is not None:
        x = rotate(x, each.angle.to(x.device))
    x = x.clone() if x is crops else x.contiguous()
    rest = SampledParameters(**{**vars(each), "flipped": None, "angle": None})
    return _run(None, x, rest, largest_radius)


def _run(images: WholeImages | None, crops: Tensor, each: SampledParameters, largest_radius: int) -> Tensor:
    """Fill crops [N, C, size, size] from the images, or change them; those that are given."""
    N, C, size, _ = crops.shape
    blurred = torch.zeros(N, dtype=torch.bool) if each.blurred is None else each.blurred
    gpu.launch(
        kernels.make_crops,
        (N,),
        crops if images is None else images.pixels,
        gpu.moved(_rows(N, each, blurred, images), crops.device),
        crops,
        size,
        C=C,
        CUT=images is not None,
    )
    indices = blurred.nonzero().flatten()
    if len(indices):
        assert each.sigma is not None
        solarized = torch.zeros(N) if each.solarized is None else each.solarized
        columns = [indices, each.sigma[indices], solarized[indices]]
        drawn = gpu.moved(torch.stack([column.float() for column in columns], dim=1), crops.device)
        between = torch.empty(len(indices), C, size, size, device=crops.device)
        grid = (len(indices) * C, -(-size * size // gpu.BLOCK))
        for rows in (True, False):
            gpu.launch(kernels.blur_lines, grid, crops, between, drawn, size, largest_radius, C=C, ROWS=rows)
    return crops


def _rows(N: int, each: SampledParameters, blurred: Tensor, images: WholeImages | None) -> Tensor:
    """What happens to each crop, float32 [N, COLUMNS]; a crop that is blurred is solarized after that."""
    rows = torch.zeros(N, COLUMNS)
    if images is not None:
        views = N // len(images)
        rows.view(torch.int64)[:, PLACE // 2] = images.places.repeat(views)
        rows[:, SIZE : SIZE + 2] = images.sizes.repeat(views, 1).float()
    rows[:, BLENDS:HUE:3] = 1.0
    for column, part in ((BOX, each.boxes), (BLENDS, each.blends)):
        if part is not None:
            rows[:, column : column + part[0].numel()] = part.flatten(1)
    for column, one in ((FLIP, each.flipped), (HUE, each.hue_shift), (GREY, each.grey)):
        if one is not None:
            rows[:, column] = one.float()
    if each.solarized is not None:
        rows[:, SOLARIZE] = (each.solarized & ~blurred).float()
    return rows
