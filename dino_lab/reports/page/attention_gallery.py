"""Where the CLS token of the last block looks, head by head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.pictures import bytes_of
from dino_lab.reports.page.gallery import SIDE, Gallery, tile
from dino_lab.reports.page.samples import Samples, ask_shown


def attention(encode: Encoder, samples: Samples) -> Gallery:
    """One column an image: itself, the mean of the heads, each head; a UserError where there are none."""
    images = samples.test.images[samples.shown]
    maps = ask_shown(encode, samples, "attention")  # [N, heads, h, w]
    if not maps.isfinite().all():
        raise UserError("it is not finite; the network has diverged")
    grey = _grey(images)
    rows = [[tile(image) for image in images]]
    for head in torch.cat([maps.mean(1, keepdim=True), maps], 1).unbind(1):
        rows.append([tile(bytes_of(overlay(*pair))) for pair in zip(grey, head, strict=True)])
    names = ("image", "mean", *(f"head {i + 1}" for i in range(maps.shape[1])))
    return Gallery(samples.shown_names, rows, names)


def overlay(grey: Tensor, weights: Tensor) -> Tensor:
    """Weights [h, w] as colour over a grey picture [1, H, W] in 0..1: [3, H, W], the largest brightest."""
    from matplotlib import colormaps

    share = weights / weights.max().clamp(min=1e-12)
    fine = F.interpolate(share[None, None], grey.shape[-2:], mode="nearest-exact")[0]  # [1, H, W]
    colours = torch.from_numpy(colormaps["inferno"](fine[0].numpy())[..., :3]).float().movedim(-1, 0)
    alpha = 0.25 + 0.65 * fine  # where nothing looks, the picture shows
    return colours * alpha + grey * (1 - alpha)


def _grey(images: Tensor) -> Tensor:
    """uint8 [N, C, H, W] to [N, 1, SIDE, SIDE] in 0..1, so that even a small image has pixels to blend."""
    whole = images.float().mean(1, keepdim=True) / 255
    mode = "nearest-exact" if whole.shape[-1] <= SIDE else "area"
    return F.interpolate(whole, SIDE, mode=mode)
