"""Bands of image files, of any number and depth: TIFF, NumPy arrays, DICOM, and what Pillow opens."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, PngImagePlugin, TiffImagePlugin

from dino_lab.imaging.bad_image import BadImage

Values = NDArray[Any]  # numbers of any kind
Level = NDArray[np.uint8]
Kind = Literal["NPY", "TIFF", "DICOM"]

MOST_BANDS = 32
MOST_IN_A_FILE = 1024  # a guard against hostile files: memory is taken for all of them
NPY, DICOM, DICOM_AT = b"\x93NUMPY", b"DICM", 128
UNSIGNED_BYTES = np.dtype(np.uint8)
ALPHA_MULTIPLIED = 1  # TIFF's ExtraSamples: Pillow divides the colours by it
SAY_BANDS = "say in data.channels which bands are used, such as [1, 2, 3]"
SAY_RANGE = "say in data.range: [LOW, HIGH] which values are 0 and 1, or set data.percentiles: [1, 99]"


@dataclass(frozen=True)
class Bands:
    """Which bands of a file are used, and which of their values are 0 and 1."""

    numbers: tuple[int, ...]  # from 1 on
    ranges: tuple[tuple[float, float], ...] | None = None  # of each band; None: 0 to 255, of bytes alone

    def levels(self, values: Values) -> Level:
        """Values [C, H, W] of the bands as uint8: the nearest of 256 levels; what lies outside is clipped.

        A BadImage where they have no range, or some of them are no numbers.
        """
        if self.ranges is None:
            if values.dtype != UNSIGNED_BYTES:
                what = f"{values.dtype.itemsize * 8} bits ({values.dtype.name})"
                raise BadImage(f"values of {what} have no stated range", SAY_RANGE)
            return np.ascontiguousarray(values)
        levels = np.empty(values.shape, np.uint8)
        for level, band, (low, high) in zip(levels, values, self.ranges, strict=True):
            shares = (band.astype(np.float64) - low) / (high - low)
            if not np.isfinite(shares).all():
                raise BadImage("some of its values are no numbers")
            level[:] = np.floor(shares.clip(0, 1) * 255 + 0.5)
        return levels


class Raster(Image.Image):
    """A file whose bands Pillow does not read; asked for its pixels as an image, it says why."""

    def __init__(
        self, kind: Kind, content: bytes, size: tuple[int, int], bands: str, complaint: BadImage
    ) -> None:
        """`bands` is their number and depth in words, as `4 x 16 bit`."""
        super().__init__()
        self.kind, self.content, self.bands, self.complaint = kind, content, bands, complaint
        self.format, self._size = kind, size

    def load(self) -> NoReturn:
        """Raise the BadImage."""
        raise self.complaint


def array_or_dicom(content: bytes) -> Raster | None:
    """The raster of a NumPy array or a DICOM file; None of any other, a BadImage of a damaged one."""
    if content.startswith(NPY):
        values = _npy(content)
        bands, height, width = values.shape
        words = f"{bands} x {8 * values.dtype.itemsize} bit"
        what = f"a NumPy array of {bands} band{'s' * (bands != 1)}"
        return Raster("NPY", content, (width, height), words, BadImage(what, SAY_BANDS))
    if content[DICOM_AT : DICOM_AT + len(DICOM)] == DICOM:
        header = _dicom(content, stop_before_pixels=True)
        size = int(getattr(header, "Columns", 0)), int(getattr(header, "Rows", 0))
        words = f"1 x {getattr(header, 'BitsStored', '?')} bit"
        return Raster("DICOM", content, size, words, BadImage("a DICOM file", SAY_BANDS))
    return None


def values_of(image: Image.Image, bands: Bands, max_pixels: int) -> Values:
    """The values [C, H, W] of some bands of an image or a raster that is not decoded yet, upright.

    A BadImage where there are no such bands, or they cannot be read.
    """
    if image.width * image.height > max_pixels:
        raise BadImage(
            f"{image.width} x {image.height} pixels are more than {max_pixels}",
            "raise data.max_pixels if the file can be trusted, or scale it down",
        )
    values = _all_values(image)
    missing = [number for number in bands.numbers if number > len(values)]
    if missing:
        there = f"{len(values)} band{'s' * (len(values) != 1)}"
        raise BadImage(f"has {there}, and data.channels asks for number {missing[0]}", SAY_BANDS)
    return values[[number - 1 for number in bands.numbers]]


def _all_values(image: Image.Image) -> Values:
    """All bands [C, H, W]."""
    if isinstance(image, Raster):
        readers: dict[Kind, Callable[[bytes], Values]] = {"NPY": _npy, "TIFF": _tiff, "DICOM": _dicom_values}
        return readers[image.kind](image.content)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and not _pillow_has_all(image):
        return _tiff(_content(image))
    if isinstance(image, PngImagePlugin.PngImageFile) and has_16_bit_colours(image):
        return _sixteen_bits(image)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in ("1", "P", "PA"):
        image = image.convert("L" if image.mode == "1" else "RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def has_16_bit_colours(image: Image.Image) -> bool:
    """Whether Pillow makes 8-bit colours of 16-bit ones, of which it takes the upper half."""
    if image.mode not in ("RGB", "RGBA") or not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return False
    return ";16" in str(image.tile[0][3])


def _pillow_has_all(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow gives every band of a TIFF file as it is there."""
    extra = image.tag_v2.get(TiffImagePlugin.EXTRASAMPLES, ())
    count = image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    return (
        count == len(image.getbands())
        and ALPHA_MULTIPLIED not in np.atleast_1d(extra)
        and not has_16_bit_colours(image)
    )


def _content(image: Image.Image) -> bytes:
    """The file of an image that is not decoded yet; `opened` gives Pillow all of it."""
    file = getattr(image, "fp", None)
    assert isinstance(file, io.BytesIO), "an image that `opened` gave"
    return file.getvalue()


def _npy(content: bytes) -> Values:
    """[C, H, W] of a NumPy file; bands are its shortest axis, the first or the last. It is not copied."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, kind = read[version](file)
    except Exception as error:  # of a header that is any text
        raise BadImage(f"not a whole NumPy file ({' '.join(str(error).split())[:120]})") from error
    if kind.kind not in "uif" or len(shape) not in (2, 3) or min(shape) < 1:
        raise BadImage(
            f"a NumPy array of {kind} {list(shape)}",
            "write numbers of the shape [H, W], [C, H, W] or [H, W, C]",
        )
    count = int(np.prod(shape, dtype=object))
    if len(content) - file.tell() < count * kind.itemsize:
        raise BadImage(f"the file is too short for {kind} {list(shape)}")
    flat = np.frombuffer(content, kind, count, file.tell())
    return _bands_first(flat.reshape(shape, order="F" if fortran else "C"))


def _bands_first(values: Values) -> Values:
    """[H, W], [C, H, W] or [H, W, C] as [C, H, W]; a BadImage where the bands cannot be told."""
    if values.ndim == 2:
        return values[None]
    first, middle, last = values.shape
    if min(first, last) > MOST_BANDS or first == last or min(first, last) >= middle:
        raise BadImage(
            f"its shape {list(values.shape)} does not tell which axis is the bands",
            f"bands are the shortest axis, the first or the last, of at most {MOST_BANDS}",
        )
    return values if first < last else values.transpose(2, 0, 1)


def _sixteen_bits(image: ImageFile.ImageFile) -> Values:
    """A PNG file of 16-bit colours, of which Pillow gives the upper bytes, or the lower."""
    name, extents, offset, kind = image.tile[0]
    if kind not in ("RGB;16B", "RGBA;16B"):
        raise BadImage(f"a PNG file of 16 bits ({kind})", "write it as RGB, RGBA or grey")
    lower = Image.open(io.BytesIO(_content(image)))
    assert isinstance(lower, ImageFile.ImageFile)
    lower.tile = [type(image.tile[0])(name, extents, offset, str(kind).replace("16B", "16L"))]
    high, low = (np.asarray(each).astype(np.uint16) for each in (image, lower))
    return (256 * high + low).transpose(2, 0, 1)


def _tiff(content: bytes) -> Values:
    """The first picture of a TIFF file, by tifffile."""
    tifffile = _package("tifffile", "bands", "reading these bands of a TIFF file")
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            page = file.pages[0]
            if page.samplesperpixel > MOST_IN_A_FILE:
                raise ValueError(f"it states {page.samplesperpixel} bands")
            values, axes = page.asarray(), page.axes
    except Exception as error:  # as many kinds as there are ways to be damaged
        raise BadImage(
            f"a TIFF file that tifffile cannot read ({' '.join(str(error).split())[:120]})"
        ) from error
    if axes == "YX":
        return np.asarray(values)[None]
    if axes == "YXS":
        return np.asarray(values).transpose(2, 0, 1)
    if axes == "SYX":
        return np.asarray(values)
    raise BadImage(f"a TIFF file with the axes {axes}", "write it with the axes YX, YXS or SYX")


def _package(name: str, extra: str, what: str) -> Any:
    """A package of an extra; a BadImage says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadImage(f"{what} needs {name}", f"pip install 'dino-lab[{extra}]'") from error


def _dicom(content: bytes, **how: Any) -> Any:
    pydicom = _package("pydicom", "dicom", "reading a DICOM file")
    try:
        return pydicom.dcmread(io.BytesIO(content), **how)
    except Exception as error:  # as many kinds as there are ways to be damaged
        raise BadImage(f"not a whole DICOM file ({' '.join(str(error).split())[:120]})") from error


def _dicom_values(content: bytes) -> Values:
    """The values of a DICOM file in the units that it states, such as Hounsfield's."""
    file = _dicom(content)
    photometric = getattr(file, "PhotometricInterpretation", "none")
    if photometric != "MONOCHROME2" or int(getattr(file, "NumberOfFrames", 1)) != 1:
        raise BadImage(
            f"a DICOM file of {photometric}, {getattr(file, 'NumberOfFrames', 1)} frames",
            "read is one frame of MONOCHROME2",
        )
    try:
        values: Values = file.pixel_array
    except Exception as error:  # of a compression that pydicom has no decoder for, or damaged pixels
        raise BadImage(
            f"a DICOM file whose pixels cannot be read ({' '.join(str(error).split())[:120]})"
        ) from error
    slope, intercept = float(getattr(file, "RescaleSlope", 1)), float(getattr(file, "RescaleIntercept", 0))
    return values.astype(np.float64)[None] * slope + intercept
