"""Small pictures for a page: images as data in the address, and tables of them."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from torch import Tensor

from dino_lab.imaging.pictures import picture_of

SIDE = 128  # pixels that a tile has at most
SMALL = 64  # pixels up to which a tile is kept as it is, bit for bit; larger ones are JPEG


@dataclass(frozen=True)
class Tile:
    """One picture, what is written below it, and whether it is marked as right or wrong."""

    source: str
    caption: str = ""
    mark: Literal["", "right", "wrong"] = ""


@dataclass(frozen=True)
class Gallery:
    """Rows of tiles below their headings, each with a name of its own where there are `names`."""

    headings: tuple[str, ...]
    rows: list[list[Tile]]
    names: tuple[str, ...] = ()


def tile(image: Tensor, caption: str = "", mark: Literal["", "right", "wrong"] = "") -> Tile:
    """A tile of an image uint8 [C, H, W], scaled down to at most `SIDE`."""
    picture = picture_of(image)
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    return Tile(address(picture), caption, mark)


def address(picture: Image.Image) -> str:
    """A picture as a data address: PNG if it is small, else JPEG."""
    small = max(picture.size) <= SMALL
    return f"data:image/{'png' if small else 'jpeg'};base64,{encoded(picture, 'PNG' if small else 'JPEG')}"


def encoded(picture: Image.Image, format_: Literal["PNG", "JPEG"], quality: int = 88) -> str:
    """In base64."""
    buffer = io.BytesIO()
    options = {"optimize": True} if format_ == "PNG" else {"quality": quality}
    picture.save(buffer, format_, **options)
    return base64.b64encode(buffer.getvalue()).decode()
