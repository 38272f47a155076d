"""Image files made into pixels: which files are images, and what is upright RGB."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dino_lab.errors import UserError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
Pixels = NDArray[np.uint8]


class BadImage(Exception):
    """An image that cannot be read; the text says why."""


def decode(image: Image.Image, size: int) -> Pixels:
    """RGB pixels [3, size, size]: upright, the short side scaled to `size` (bicubic, antialiased), centred.

    Of an animation it is the first frame. Transparency is laid over white, 16-bit grey is scaled to 8 bits.
    Raises BadImage where the file is truncated or its kind of pixel has no meaning in RGB.
    """
    try:
        if image.format == "JPEG":
            # A quarter or an eighth of the pixels for nearly free; twice the size keeps bicubic exact enough.
            image.draft(None, (2 * size, 2 * size))
        return pixels(ImageOps.fit(_upright_rgb(image), (size, size), Image.Resampling.BICUBIC))
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise BadImage(_reason(error)) from error


def read_rgb(file: Path) -> Image.Image:
    """The whole image of a file, upright and in RGB as `decode` has it; a UserError where that cannot be."""
    try:
        with Image.open(file) as image:
            return _upright_rgb(image)
    except Exception as error:
        raise UserError(f"{file}: unreadable image ({_reason(error)}); repair or remove it") from error


def image_files(folder: Path) -> list[Path]:
    """Files below a folder that are named like images and not hidden, in the order of their paths."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def pixels(image: Image.Image) -> Pixels:
    """Uint8 [3, H, W] of an RGB image."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):  # whose text names the object, not the file
        return "not an image"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    return " ".join(str(error).split()) or type(error).__name__


def _upright_rgb(image: Image.Image) -> Image.Image:
    return _rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says; a damaged EXIF block says nothing, and costs no pixel."""
    image.load()  # what is wrong with the pixels is told as such
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16 bits instead of scaling them, and reads 16-bit PNG as "I" or "I;16" by version.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary and often black.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
