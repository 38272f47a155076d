"""Islands as a picture: one row for each image, one column for each level."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

TILE = 128  # pixels of a side, at least
MARGIN = 4
TITLE = 18


def draw(images: Tensor, parts: Tensor, levels: Tensor, names: Tensor) -> bytes:
    """A PNG of images uint8 [N, C, H, W], part masks [N, H, W], levels [N, L, D, h, w] and islands [N, L, P].

    Of every level the three first principal components over all columns of all images become red, green and
    blue, so that equal colours mean equal embeddings; a black line divides islands.
    """
    height, width = levels.shape[-2:]
    cell = -(-TILE // max(height, width))
    size = (cell * height, cell * width)
    titles = ["image", "parts", *(f"level {i + 1}" for i in range(levels.shape[1]))]
    tiles = [_enlarged(images.float() / 255, size), _enlarged(_painted(parts), size)]
    for level, name in zip(levels.unbind(1), names.unbind(1), strict=True):
        tiles.append(_enlarged(colours(level), size) * ~_borders(name.unflatten(1, (height, width)), cell))
    return _png(torch.stack(tiles, 1), titles)


def colours(embeddings: Tensor) -> Tensor:
    """Embeddings [N, D, h, w] to red, green and blue in 0..1, [N, 3, h, w]."""
    flat = embeddings.movedim(1, -1).flatten(0, 2).double()  # [N h w, D]
    centred = flat - flat.mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # by rising eigenvalue
    axes = vectors.flip(1)[:, :3]
    # A principal component is known up to its sign: here its largest entry is positive.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    projected = F.pad(centred @ axes, (0, 3 - axes.shape[1]))  # [N h w, 3]
    low, high = projected.amin(0), projected.amax(0)
    scaled = (projected - low) / (high - low).clamp(min=1e-12)
    return scaled.float().view(len(embeddings), *embeddings.shape[2:], 3).movedim(-1, 1)


def _painted(parts: Tensor) -> Tensor:
    """Part masks [N, H, W] in grey, red, green, blue, ..., [N, 3, H, W]."""
    palette = torch.tensor(
        [(0.2, 0.2, 0.2), (0.9, 0.3, 0.2), (0.3, 0.8, 0.3), (0.3, 0.4, 0.9), (0.9, 0.8, 0.2)]
    )
    index = parts.long()
    return palette[torch.where(index > 0, (index - 1) % (len(palette) - 1) + 1, 0)].movedim(-1, 1)


def _enlarged(images: Tensor, size: tuple[int, int]) -> Tensor:
    """RGB [N, 3, height, width] without smoothing, of grey or RGB images."""
    return F.interpolate(images, size, mode="nearest-exact").expand(-1, 3, -1, -1)


def _borders(names: Tensor, cell: int) -> Tensor:
    """Pixels [N, 1, h * cell, w * cell] at the upper and left edges of cells that begin an island."""
    fine = names.repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    edge = torch.zeros_like(fine, dtype=torch.bool)
    edge[:, 1:] |= fine[:, 1:] != fine[:, :-1]
    edge[:, :, 1:] |= fine[:, :, 1:] != fine[:, :, :-1]
    return edge[:, None]


def _png(tiles: Tensor, titles: list[str]) -> bytes:
    """Tiles [N, columns, 3, height, width] in rows below their titles."""
    rows, columns, _, height, width = tiles.shape
    step_x, step_y = width + MARGIN, height + MARGIN
    sheet = Image.new("RGB", (MARGIN + columns * step_x, TITLE + rows * step_y), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((MARGIN + column * step_x, MARGIN), title, fill="black")
        for row in range(rows):
            pixels = (tiles[row, column].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous()
            tile = Image.frombytes("RGB", (width, height), pixels.numpy().tobytes())
            sheet.paste(tile, (MARGIN + column * step_x, TITLE + row * step_y))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
