"""Altered copies of an image: cropped, compressed, blurred, drawn over, rotated, recoloured.

Random numbers depend on (seed, kind, index) alone. Images are RGB of any size; a copy may have another size.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Random = np.random.Generator
GREY = (124, 116, 104)  # behind a rotated image: the mean colour of ImageNet


def copy(image: Image.Image, kind: str, seed: int, index: int) -> Image.Image:
    """A copy of one of `KINDS`."""
    random = np.random.default_rng((seed, zlib.crc32(kind.encode()), index))
    return KINDS[kind][0](image, random)


def _crop(image: Image.Image, random: Random) -> Image.Image:
    return image.crop(_window(image, random.uniform(0.2, 0.7), random))


def _window(image: Image.Image, share: float, random: Random) -> tuple[int, int, int, int]:
    """A box with this share of the image's area, and the image's own proportions, anywhere inside."""
    width, height = (max(1, round(side * math.sqrt(share))) for side in image.size)
    left = int(random.integers(0, image.width - width + 1))
    top = int(random.integers(0, image.height - height + 1))
    return left, top, left + width, top + height


def _jpeg(image: Image.Image, random: Random) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(3, 31)))
    return Image.open(buffer).convert("RGB")


def _blur(image: Image.Image, random: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.01, 0.06) * min(image.size)))


def _overlay(image: Image.Image, random: Random) -> Image.Image:
    """A box, plain, striped, chequered, or with lines as of text."""
    image = image.copy()
    left, top, right, bottom = _window(image, random.uniform(0.1, 0.35), random)
    width, height = right - left, bottom - top
    paper, ink = (tuple(int(value) for value in colour) for colour in random.integers(0, 256, (2, 3)))
    patch = Image.new("RGB", (width, height), paper)
    _PATTERNS[int(random.integers(len(_PATTERNS)))](ImageDraw.Draw(patch), width, height, ink, random)
    image.paste(patch, (left, top))
    return image


def _rotation(image: Image.Image, random: Random) -> Image.Image:
    angle = random.uniform(10, 45) * random.choice((-1, 1))
    return image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=GREY)


def _colour(image: Image.Image, random: Random) -> Image.Image:
    """Brightness, contrast, saturation and hue."""
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(random.uniform(0.4, 1.6))
    hue, saturation, value = image.convert("HSV").split()
    shift = int(random.integers(-32, 33))  # of 256
    shifted = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


Ink = tuple[int, ...]
Pattern = Callable[[ImageDraw.ImageDraw, int, int, Ink, Random], None]


def _plain(pen: ImageDraw.ImageDraw, width: int, height: int, ink: Ink, random: Random) -> None: ...


def _stripes(pen: ImageDraw.ImageDraw, width: int, height: int, ink: Ink, random: Random) -> None:
    step = max(1, width // 8)
    for x in range(0, width, 2 * step):
        pen.rectangle((x, 0, x + step - 1, height), fill=ink)


def _chequers(pen: ImageDraw.ImageDraw, width: int, height: int, ink: Ink, random: Random) -> None:
    step = max(1, min(width, height) // 4)
    for x in range(0, width, step):
        for y in range((x // step) % 2 * step, height, 2 * step):
            pen.rectangle((x, y, x + step - 1, y + step - 1), fill=ink)


def _lines(pen: ImageDraw.ImageDraw, width: int, height: int, ink: Ink, random: Random) -> None:
    """Words of random length in rows."""
    row = max(2, height // 6)
    for y in range(row // 2, height - row // 2, row):
        x = row // 2
        while x < width - row // 2:
            end = x + int(random.integers(1, 5)) * row // 2
            pen.rectangle((x, y, min(end, width - row // 2), y + max(0, row // 2 - 1)), fill=ink)
            x = end + max(2, row // 2)


_PATTERNS: tuple[Pattern, ...] = (_plain, _stripes, _chequers, _lines)

# How each kind is made, and that in words.
KINDS: dict[str, tuple[Callable[[Image.Image, Random], Image.Image], str]] = {
    "crop": (_crop, "crop of 20-70 % of the area"),
    "jpeg": (_jpeg, "JPEG of quality 3-30"),
    "blur": (_blur, "Gaussian blur of 1-6 % of the short side"),
    "overlay": (_overlay, "box, stripes, chequers or lines as of text over 10-35 % of the area"),
    "rotation": (_rotation, "rotation by 10-45 degrees"),
    "colour": (_colour, "brightness, contrast, saturation x 0.4-1.6, hue +- 1/8 turn"),
}
