"""A picture of queries and their results: right ones marked green, wrong ones red."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from dino_lab.imaging.pictures import picture_of, png

TILE = 96  # pixels of a side
GAP = 8
LINE = 14  # of text
FRAME = 4
COLOURS = {True: (27, 140, 62), False: (200, 40, 40), None: (150, 150, 150)}
INK = (30, 30, 30)


@dataclass(frozen=True)
class Found:
    """One query and its first results."""

    given: list[tuple[Image.Image, str]]  # the query, and what should be seen beside it, with captions
    results: list[tuple[Image.Image, bool | None]]  # None: neither right nor wrong
    captions: list[str]


def draw(rows: Sequence[Found], title: str, given: Sequence[str] = ("query",)) -> bytes:
    """A PNG with one row for each query; right results bear a tick, wrong ones a cross, others a dash.

    `given` are the titles of what is given of each row.
    """
    titles = [*given, *(str(rank + 1) for rank in range(max(len(row.results) for row in rows)))]
    left = [GAP + i * (TILE + GAP) + (GAP if i >= len(given) else 0) for i in range(len(titles))]
    step = TILE + GAP + LINE
    sheet = Image.new("RGB", (left[-1] + TILE + GAP, 2 * GAP + 2 * LINE + len(rows) * step), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, GAP // 2), title, fill=INK)
    for x, text in zip(left, titles, strict=True):
        pen.text((x, GAP // 2 + LINE), text, fill=INK)
    for i, row in enumerate(rows):
        y = GAP + 2 * LINE + i * step
        for x, (image, caption) in zip(left, row.given, strict=False):
            _tile(sheet, pen, (x, y), image, caption)
        results = zip(left[len(given) :], row.results, row.captions, strict=False)
        for x, (image, right), caption in results:
            _tile(sheet, pen, (x, y), image, caption)
            _mark(pen, (x, y), right)
    return png(sheet)


def of_split(batches: Iterator[tuple[Tensor, Tensor]], rows: Sequence[int]) -> dict[int, Image.Image]:
    """The images of some rows of a split."""
    wanted, found, start = set(rows), {}, 0
    for images, _ in batches:
        for row in [row for row in wanted if start <= row < start + len(images)]:
            found[row] = picture_of(images[row - start])
        start += len(images)
        if len(found) == len(wanted):
            break
    return found


def spread(count: int, of: int) -> list[int]:
    """`count` rows of 0..of - 1 at equal distances, or all."""
    return torch.linspace(0, of - 1, min(count, of)).round().long().tolist()


def _shortened(text: str) -> str:
    """Text that fits below a tile."""
    return text if len(text) <= 16 else f"{text[:15]}…"


def _tile(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, at: tuple[int, int], image: Image.Image, caption: str
) -> None:
    """The whole image in the middle of its tile, with its text below."""
    small = max(image.size) < TILE  # small images are shown by their pixels
    fitted = ImageOps.contain(
        image, (TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.BOX
    )
    sheet.paste(fitted, (at[0] + (TILE - fitted.width) // 2, at[1] + (TILE - fitted.height) // 2))
    pen.text((at[0], at[1] + TILE + 1), _shortened(caption), fill=INK)


def _mark(pen: ImageDraw.ImageDraw, at: tuple[int, int], right: bool | None) -> None:
    """A frame, and a sign in the corner for readers who cannot tell the colours apart."""
    colour, (x, y) = COLOURS[right], at
    pen.rectangle((x, y, x + TILE - 1, y + TILE - 1), outline=colour, width=FRAME)
    pen.rectangle((x, y, x + 17, y + 17), fill=colour)
    for line in _SIGNS[right]:
        pen.line([(x + dx, y + dy) for dx, dy in line], fill="white", width=3)


_SIGNS: dict[bool | None, list[list[tuple[int, int]]]] = {
    True: [[(3, 9), (7, 13), (14, 4)]],
    False: [[(4, 4), (13, 13)], [(4, 13), (13, 4)]],
    None: [[(4, 9), (13, 9)]],
}
