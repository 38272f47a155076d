"""Image files made into pixels: what is upright RGB."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from dino_lab.errors import UserError
from dino_lab.imaging.bad_image import REPAIR
from dino_lab.imaging.bad_image import BadImage as BadImage
from dino_lab.imaging.bands import Bands, Raster, array_or_dicom, has_16_bit_colours, values_of
from dino_lab.imaging.files import shown

Pixels = NDArray[np.uint8]
Trait = Literal["grey", "dark", "transparent", "graded", "bands", "pages"]

# Pillow has one limit for a whole process, and warns at half of it; ours is checked before pixels are made.
MAX_PIXELS = 178_956_970  # at which Pillow refuses
Image.MAX_IMAGE_PIXELS = None

SIXTEEN_BITS = 65535
SCALED = (
    "JPEG2000",
    "PPM",
)  # formats whose grey values Pillow scales to 16 bits by the range that they state
# Formats for which Pillow runs another program, or that it knows by name only.
UNREAD = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
SEVERAL = ("GIF", "PNG", "TIFF", "WEBP")  # formats of which a file may hold several pictures
GRADED_VALUES, OPAQUE_SHARE = 16, 0.1
DARK = 64  # of 255: 16-bit colours below it were most likely taken for what they are not
MASKS = ("1", "L", "P")


@dataclass(frozen=True)
class Reading:
    """How the values of a file are taken where it leaves that open."""

    white: float | None = None  # the value of grey pixels of more than 8 bits that is white; None: 65535
    fourth_band: Literal["transparency", "dropped"] = "transparency"
    max_pixels: int = MAX_PIXELS
    bands: Bands | None = None  # which are used, as they are; None: red, green and blue are made of any image

    @property
    def channels(self) -> int:
        """How many there are of an image that is read so."""
        return 3 if self.bands is None else len(self.bands.numbers)


PLAIN = Reading()


@dataclass(frozen=True)
class Whole:
    """All of an image, scaled down where its longer side has more than `longest` pixels."""

    longest: int | None = None

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height to which an image is scaled."""
        if self.longest is None or max(width, height) <= self.longest:
            return width, height
        factor = self.longest / max(width, height)
        return max(1, round(width * factor)), max(1, round(height * factor))


Extent = int | Whole  # what of an image is kept: the side of the square in its middle, or all of it


def opened(content: bytes) -> Image.Image:
    """The image that a file holds, not yet decoded; a BadImage says what it holds instead.

    Of what Pillow does not read it is a `Raster`, whose bands may be read all the same.
    """
    if (raster := array_or_dicom(content)) is not None:
        return raster
    try:
        Image.init()
        return Image.open(io.BytesIO(content), formats=[name for name in Image.ID if name not in UNREAD])
    except UnidentifiedImageError as error:
        if (tiff := _other_tiff(content)) is not None:
            return tiff
        raise _instead(content) from error
    except Exception as error:
        raise BadImage(_reason(error)) from error


def read_image(file: Path) -> Image.Image:
    """The image of a file, not yet decoded; a BadImage says why there is none."""
    try:
        content = file.read_bytes()
    except OSError as error:
        if file.is_symlink():
            target = shown(os.readlink(file))
            advice = "fetch it, as `git annex get` or `dvc pull` does"
            raise BadImage(f"a link to {target}, which is not there", advice) from error
        raise BadImage(error.strerror or "cannot be read") from error
    return opened(content)


def decode(image: Image.Image, extent: Extent, reading: Reading = PLAIN) -> Pixels:
    """Pixels uint8 [C, H, W], RGB or the bands that are asked for: upright, and scaled.

    The filter is bicubic and antialiased.

    With a number as `extent` the short side is scaled to it, and the square in the middle is given. Of an
    animation it is the first frame. Transparency is laid over white, and grey of more than 8 bits is
    scaled. Raises BadImage where the file is truncated or too large, or its kind of pixel has no meaning in
    RGB.
    """
    return examine(image, extent, reading)[0]


def examine(
    image: Image.Image, extent: Extent, reading: Reading = PLAIN
) -> tuple[Pixels, dict[Trait, float]]:
    """As `decode`, and what of the image may have been meant otherwise, each with a number.

    `grey`: more than 8 bits without a stated range, the largest value; `dark`: 16-bit colours, the largest of
    their 8-bit values; `transparent`: a fourth band, or a second one, that is laid over white; `graded`: the
    same, but its values vary as a colour's do; `bands`: how many there are, more than are used; `pages`: more
    than one.
    """
    traits: dict[Trait, float] = {}
    try:
        if image.format == "JPEG":
            # A quarter or an eighth of the pixels for nearly free; twice the size keeps bicubic exact enough.
            width, height = extent.size(*image.size) if isinstance(extent, Whole) else (extent, extent)
            image.draft(None, (2 * width, 2 * height))
        if reading.bands is not None:
            _note_pages(image, traits)
            levels = reading.bands.levels(values_of(image, reading.bands, reading.max_pixels))
            found = np.stack([np.asarray(_scaled_to(Image.fromarray(level), extent)) for level in levels])
        else:
            found = pixels(_scaled_to(_upright_rgb(image, reading, traits), extent))
    except BadImage:
        raise
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, struct.error, zlib.error, ...
        raise BadImage(_reason(error)) from error
    return found, traits


def _scaled_to(image: Image.Image, extent: Extent) -> Image.Image:
    if not isinstance(extent, Whole):
        return ImageOps.fit(image, (extent, extent), Image.Resampling.BICUBIC)
    size = extent.size(*image.size)
    return image if size == image.size else image.resize(size, Image.Resampling.BICUBIC)


def read_rgb(file: Path) -> Image.Image:
    """The whole image of a file, upright and in RGB as `decode` has it; a UserError where that cannot be."""
    try:
        return _upright_rgb(read_image(file), PLAIN, {})
    except Exception as error:
        advice = error.advice if isinstance(error, BadImage) else REPAIR
        raise UserError(f"{shown(file)}: unreadable image ({_reason(error)}); {advice}") from error


def pixels(image: Image.Image) -> Pixels:
    """Uint8 [3, H, W] of an RGB image."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # [H, W, 3] -> [3, H, W]


def decode_mask(mask: Image.Image, like: tuple[int, int], size: int) -> Pixels:
    """Values [size, size] of a grey or palette mask, cut as `decode` cuts an image of `like` (width, height).

    Of each pixel's place the nearest value. Raises BadImage where the file is truncated, its pixels are
    colours, or its size is another than the image's.
    """
    try:
        if mask.size not in (like, like[::-1]):  # told before its pixels are made
            raise ValueError("{} x {} pixels, but its image has {} x {}".format(*upright_size(mask), *like))
        upright = _upright(mask, max(MAX_PIXELS, like[0] * like[1]))
        if upright.mode not in MASKS and not upright.mode.startswith("I"):
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


def _instead(content: bytes) -> BadImage:
    """What a file holds that is not an image."""
    start = content[:512]
    if not content:
        return BadImage("the file is empty")
    if start.startswith(b"version https://git-lfs.github.com/"):
        return BadImage("a pointer of git-lfs, not the image", "fetch it with `git lfs pull`")
    if start.startswith(b"/annex/objects/"):
        return BadImage("a pointer of git-annex, not the image", "fetch it with `git annex get`")
    if start[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return BadImage("HEIC, which cannot be read here", "convert it to JPEG or PNG")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return BadImage("a web page, not an image", "download it again")
    if start.lstrip().lower().startswith((b"<svg", b"<?xml")):
        return BadImage("SVG or other XML, which has no pixels", "convert it to PNG")
    return BadImage("not an image")


def _other_tiff(content: bytes) -> Raster | None:
    """A TIFF file of bands that Pillow does not read; None of another file, or where it is damaged."""
    if content[:4] not in (b"II*\0", b"MM\0*"):
        return None
    try:
        directory: Any = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        bits = directory.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        count = directory.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
        kinds = {1: "unsigned", 2: "signed", 3: "floating-point"}
        kind = kinds.get(directory.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "other")
        size = directory[TiffImagePlugin.IMAGEWIDTH], directory[TiffImagePlugin.IMAGELENGTH]
    except Exception:  # of a damaged directory
        return None
    complaint = BadImage(
        f"a TIFF file of {count} band{'s' * (count != 1)} of {bits[0]} bits ({kind}); read are one band of "
        "up to 16 bits, and RGB or CMYK of 8 or 16 bits, after which further bands are not used",
        "write the three bands that are wanted as an 8-bit RGB image, or name bands in data.channels",
    )
    return Raster("TIFF", content, size, f"{count} x {bits[0]} bit", complaint)


def _upright_rgb(image: Image.Image, reading: Reading, traits: dict[Trait, float]) -> Image.Image:
    _note_file(image, traits)
    sixteen, stated = has_16_bit_colours(image), image.format in SCALED
    rgb = _rgb(_upright(image, reading.max_pixels), reading, stated, traits)
    if sixteen:
        traits["dark"] = float(np.asarray(rgb).max())
    return rgb


def _upright(image: Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Turned as its EXIF says; a damaged EXIF block says nothing, and costs no pixel."""
    if image.width * image.height > max_pixels:
        raise BadImage(
            f"{image.width} x {image.height} pixels are more than {max_pixels}",
            "raise data.max_pixels if the file can be trusted, or scale it down",
        )
    image.load()  # what is wrong with the pixels is told as such
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _rgb(image: Image.Image, reading: Reading, stated: bool, traits: dict[Trait, float]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _scaled(image, reading.white, stated, traits)
    if image.has_transparency_data:
        if image.mode in ("RGBA", "LA"):
            traits["graded" if _is_graded(image) else "transparent"] = 1
            if reading.fourth_band == "dropped":
                return image.convert("RGB")
        # What lies under transparent pixels is arbitrary and often black.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled(image: Image.Image, white: float | None, stated: bool, traits: dict[Trait, float]) -> Image.Image:
    """Grey of 8 bits from grey of more; what is white is `stated` where Pillow has scaled to 16 bits."""
    # Pillow clips 16 bits instead of scaling them, and reads 16-bit PNG as "I" or "I;16" by version.
    grey = np.asarray(image)
    low, high = grey.min(), grey.max()
    if image.mode == "F" and white is None:
        raise BadImage("floating-point pixels have no stated range", "say in data.white which value is white")
    top = SIXTEEN_BITS if white is None or stated else white
    if not (low >= 0 and high <= top):  # so that a value that is no number is refused, too
        what = "not of 16 bits" if top == SIXTEEN_BITS else f"not in 0..{top:g}"
        raise BadImage(
            f"grey values from {low:g} to {high:g} are {what}",
            "data.white says which value is white; black is 0",
        )
    if not stated and image.mode != "F":
        traits["grey"] = float(high)
    return Image.fromarray(np.floor(grey.astype(np.float64) * 255 / top + 0.5).astype(np.uint8))


def _is_graded(image: Image.Image) -> bool:
    """Whether the last band varies as a colour does: transparency is nothing or all at most pixels."""
    counts = image.getchannel(image.getbands()[-1]).histogram()
    values = sum(count > 0 for count in counts)
    ends = (counts[0] + counts[255]) / (image.width * image.height)
    return values > GRADED_VALUES and ends < OPAQUE_SHARE


def _note_file(image: Image.Image, traits: dict[Trait, float]) -> None:
    """What the file holds beside the bands and the picture that are used."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bands = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
        if bands > len(image.getbands()):
            traits["bands"] = bands
    _note_pages(image, traits)


def _note_pages(image: Image.Image, traits: dict[Trait, float]) -> None:
    """Whether there are several pictures in the file."""
    if image.format in SEVERAL:
        try:
            if getattr(image, "is_animated", False):
                traits["pages"] = 1
        except Exception:  # of a damaged second picture, which is not used
            traits["pages"] = 1
