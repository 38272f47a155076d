"""Small pictures put together: heat over an image, a mask over an image, tiles in rows, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

TILE = 160  # pixels of a side of a tile, at least
MARGIN = 6
TITLE = 16
# From cold to hot, evenly spaced: rising in lightness, so that it reads in grey as well.
HEAT = ((8, 6, 40), (70, 18, 105), (150, 40, 100), (220, 80, 60), (250, 160, 40), (252, 250, 170))


def png(image: Image.Image) -> bytes:
    """A picture's PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W]: one channel is grey, of more than three the first three are shown."""
    rgb = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return Image.fromarray(rgb.cpu().permute(1, 2, 0).contiguous().numpy())


def bytes_of(values: Tensor) -> Tensor:
    """Floats in 0..1 as uint8."""
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def figure_png(figure: Any, **how: Any) -> bytes:
    """A figure of matplotlib as a PNG file, which says nothing of who wrote it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None}, **how)
    return buffer.getvalue()


def heat(values: Tensor) -> Tensor:
    """Colours in 0..1, [3, h, w], of a map [h, w]: its least entry coldest, its largest hottest."""
    low, high = values.min(), values.max()
    place = (values - low) / (high - low).clamp_min(1e-12) * (len(HEAT) - 1)
    stops = torch.tensor(HEAT, dtype=torch.float32) / 255
    below = place.floor().long().clamp(max=len(HEAT) - 2)
    share = (place - below)[..., None]
    return (stops[below] * (1 - share) + stops[below + 1] * share).movedim(-1, 0)


def overlay(image: Tensor, values: Tensor, strength: float = 0.65) -> Image.Image:
    """An image uint8 [C, H, W], grey, under the heat of a map [h, w]."""
    grey = _enlarged(image.float().mean(0, keepdim=True).expand(3, -1, -1) / 255)
    hot = F.interpolate(heat(values.float())[None], grey.shape[1:], mode="nearest")[0]
    return picture_of(bytes_of(grey * (1 - strength) + hot * strength))


def cut_out(image: Tensor, mask: Tensor) -> Image.Image:
    """An image uint8 [C, H, W], dark where a mask bool [h, w] is not."""
    colours = _enlarged(image.float().expand(3, -1, -1) / 255)
    inside = F.interpolate(mask.float()[None, None], colours.shape[1:], mode="nearest")[0]
    return picture_of(bytes_of(colours * (0.2 + 0.8 * inside)))


def plain(image: Tensor) -> Image.Image:
    """An image uint8 [C, H, W], as large as the others."""
    return picture_of(bytes_of(_enlarged(image.float().expand(3, -1, -1) / 255)))


def frame(picture: Image.Image, box: Sequence[float], pixels: int, colour: str) -> Image.Image:
    """The picture of an image of `pixels` a side, and a box (x0 y0 x1 y1, the last two exclusive) on it."""
    drawn, scale = picture.copy(), picture.width / pixels
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    ImageDraw.Draw(drawn).rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=3)
    return drawn


def sheet(rows: Sequence[Sequence[tuple[str, Image.Image]]], legend: str = "") -> Image.Image:
    """Titled tiles of one size in rows, on white, below a legend."""
    tiles = [tile for row in rows for _, tile in row]
    width, height = tiles[0].size
    step_x, step_y = width + MARGIN, height + TITLE + MARGIN
    columns = max(len(row) for row in rows)
    top = MARGIN + (TITLE if legend else 0)
    whole = Image.new("RGB", (MARGIN + columns * step_x, top + len(rows) * step_y), "white")
    pen = ImageDraw.Draw(whole)
    pen.text((MARGIN, MARGIN), legend, fill="black")
    for i, row in enumerate(rows):
        for j, (title, tile) in enumerate(row):
            x, y = MARGIN + j * step_x, top + i * step_y
            pen.text((x, y), title, fill="black")
            whole.paste(tile, (x, y + TITLE))
    return whole


def _enlarged(image: Tensor) -> Tensor:
    """An image [3, H, W] with each pixel as a square of pixels, so that a side has at least TILE."""
    factor = max(1, -(-TILE // min(image.shape[1:])))
    return image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
