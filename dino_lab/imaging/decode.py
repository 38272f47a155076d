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


def decode_mask(mask: Image.Image, like: tuple[int, int], size: int) -> Pixels:
    """Values [size, size] of a grey or palette mask, cut as `decode` cuts an image of `like` (width, height).

    Of each pixel's place the nearest value. Raises BadImage where the file is truncated, its pixels are
    colours, or its size is another than the image's.
    """
    try:
        upright = _upright(mask)
        if upright.mode not in ("1", "L", "P") and not upright.mode.startswith("I"):
            raise ValueError(f"its pixels are {upright.mode}, not grey or palette")
        if upright.size != like:
            raise ValueError("{} x {} pixels, but its image has {} x {}".format(*upright.size, *like))
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 255:
            raise ValueError(f"values from {values.min()} to {values.max()}, not from 0 to 255")
        square = ImageOps.fit(
            Image.fromarray(values.astype(np.uint8)), (size, size), Image.Resampling.NEAREST
        )
        return np.asarray(square)
    except Exception as error:
        raise BadImage(_reason(error)) from error


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height as the image is to be shown."""
    turned = image.getexif().get(0x0112, 1) >= 5  # orientation: 5 to 8 lie on their side
    return (image.height, image.width) if turned else image.size


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
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"grey values from {grey.min()} to {grey.max()} are not of 16 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no stated range")
    if image.has_transparency_data:
        # What lies under transparent pixels is arbitrary and often black.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
