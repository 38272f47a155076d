"""Images of any bands and depths: which are used, what of their values is 0 and 1, and their crops."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_data_readings import tiff

from dino_lab.building.data_check import check_data
from dino_lab.components.augment._lists import policy
from dino_lab.components.augment.multicrop import MultiCrop
from dino_lab.components.augment.single import Single
from dino_lab.components.augment.views import Group, ListedViews
from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data._pack import pack
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.packed import Packed
from dino_lab.errors import Misfit, UserError
from dino_lab.imaging.pictures import with_bands
from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.types import WholeImages

CPU = torch.device("cpu")
H, W = 12, 10
FOUR = {"channels": (1, 2, 3, 4), "mean": (0.5,) * 4, "std": (0.25,) * 4}
Array = np.ndarray[Any, Any]


def numbers(bands: int, kind: type, most: float, seed: int = 0) -> Array:
    """[bands, H, W]."""
    return (np.random.default_rng(seed).random((bands, H, W)) * most).astype(kind)


def npy(values: Array, **how: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **how)
    return buffer.getvalue()


def png(values: Array) -> bytes:
    """16-bit colours [H, W, 3 or 4], which Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(
        ">IIBBBBB", values.shape[1], values.shape[0], 16, 2 if values.shape[2] == 3 else 6, 0, 0, 0
    )
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def grey_png(values: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def levels(values: Array, low: float, high: float) -> Array:
    """The nearest of 256 levels between two values, and what lies outside at the ends."""
    return np.clip(np.floor((values.astype(float) - low) / (high - low) * 255 + 0.5), 0, 255).astype(np.uint8)


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., ImageFolder]:
    """A folder of one class with one training and one test file of the same content, opened with options."""

    def make(name: str, content: bytes, size: int = W, **options: Any) -> ImageFolder:
        for split in ("train", "test"):
            (tmp_path / split / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / split / "a" / name).write_bytes(content)
        return ImageFolder(CPU, path=str(tmp_path), size=size, options=FileOptions(**options))

    return make


def whole(data: ImageFolder) -> Array:
    """The training image [C, H, W]."""
    (image,) = next(data.train(1, 0, 0))[0]
    return image.numpy()


# ---- what is read


U16 = numbers(4, np.uint16, 5000)
FLOAT = numbers(4, np.float32, 2) - 0.5
BYTES = numbers(4, np.uint8, 256)
FILES: dict[str, tuple[str, bytes, Array, tuple[float, float] | None]] = {
    "array, bands first": ("a.npy", npy(U16), U16, (100, 4095)),
    "array, bands last": ("a.npy", npy(U16.transpose(1, 2, 0)), U16, (100, 4095)),
    "array in Fortran's order": ("a.npy", npy(np.asfortranarray(U16)), U16, (100, 4095)),
    "array, big-endian": ("a.npy", npy(U16.astype(">u2")), U16, (100, 4095)),
    "array, floating-point": ("a.npy", npy(FLOAT), FLOAT, (-0.25, 1.25)),
    "array, bytes": ("a.npy", npy(BYTES), BYTES, None),
    "TIFF, bytes": ("a.tif", tiff(BYTES.transpose(1, 2, 0), 2), BYTES, None),
    "PNG, a fourth band of bytes": ("a.png", grey_png(BYTES.transpose(1, 2, 0)), BYTES, None),
    "PNG, 16-bit colours": ("a.png", png(U16.transpose(1, 2, 0)), U16, (0, 65535)),
}


@pytest.mark.parametrize("name", FILES)
def test_bands_are_scaled_to_levels_and_nothing_else_is_done(name: str, opened: Any) -> None:
    file, content, values, limits = FILES[name]
    data = opened(file, content, crops="full", range=limits, **FOUR)
    wanted = values if limits is None else levels(values, *limits)
    assert np.array_equal(whole(data), wanted)
    assert data.channels == 4
    assert next(data.test(1))[0].shape == (1, 4, W, W)


def test_bands_are_taken_in_the_order_that_is_asked_for(opened: Any) -> None:
    data = opened("a.npy", npy(BYTES), crops="full", channels=(4, 2), mean=(0, 0), std=(1, 1))
    assert np.array_equal(whole(data), BYTES[[3, 1]])


def test_one_channel_of_12_bits(opened: Any) -> None:
    values = numbers(1, np.uint16, 4096)[0]
    options = {"channels": (1,), "range": (0, 4095), "mean": (0.5,), "std": (0.2,)}
    data = opened("a.png", grey_png(values), crops="full", **options)
    assert np.array_equal(whole(data), levels(values, 0, 4095)[None])


def test_squares_of_three_bands_are_those_of_an_rgb_image(opened: Any) -> None:
    content = grey_png(numbers(3, np.uint8, 256).transpose(1, 2, 0))
    rgb, bands = opened("a.png", content, 7), opened("a.png", content, 7, channels=(1, 2, 3))
    assert torch.equal(next(rgb.bank(1))[0], next(bands.bank(1))[0])


def test_percentiles_are_those_of_the_training_images(opened: Any, tmp_path: Path) -> None:
    content = npy(FLOAT)
    data = opened("a.npy", content, crops="full", percentiles=(5, 90), **FOUR)
    ends = [np.percentile(band, (5, 90)) for band in FLOAT]
    wanted = np.stack([levels(band, *pair) for band, pair in zip(FLOAT, ends, strict=True)])
    assert np.array_equal(whole(data), wanted)
    (note,) = (note for note in data.found().notes if "percentiles" in note)
    assert "between these, percentiles 5 and 90 of a sample," in note
    assert f"band 4 {ends[3][0]:g} to {ends[3][1]:g}" in note
    np.save(tmp_path / "test" / "a" / "a.npy", FLOAT * 100)  # which changes nothing of the range
    assert np.array_equal(whole(opened("b.npy", content, crops="full", percentiles=(5, 90), **FOUR)), wanted)


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("bands", [2, 5, 13])
def test_tiff_of_many_bands(planes: str, bands: int, opened: Any) -> None:
    tifffile = pytest.importorskip("tifffile", reason="the extra `bands` is not installed")
    values, buffer = numbers(bands, np.uint16, 3000), io.BytesIO()
    given = values if planes == "separate" else values.transpose(1, 2, 0)
    tifffile.imwrite(buffer, given, photometric="minisblack", planarconfig=planes, compression="zlib")
    numbers_ = tuple(range(1, bands + 1))
    options = {"channels": numbers_, "mean": (0.5,) * bands, "std": (0.2,) * bands, "range": (0, 3000)}
    assert np.array_equal(
        whole(opened("a.tif", buffer.getvalue(), crops="full", **options)), levels(values, 0, 3000)
    )


def test_dicom_in_its_own_units(opened: Any) -> None:
    pydicom = pytest.importorskip("pydicom", reason="the extra `dicom` is not installed")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    values = numbers(1, np.uint16, 2000)[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta = meta
    file.Rows, file.Columns, file.SamplesPerPixel = H, W, 1
    file.PhotometricInterpretation, file.PixelRepresentation = "MONOCHROME2", 0
    file.BitsAllocated = file.BitsStored = 16
    file.HighBit = 15
    file.RescaleSlope, file.RescaleIntercept = 1, -1024
    file.PixelData = values.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, file, enforce_file_format=True)
    options = {"channels": (1,), "mean": (0.5,), "std": (0.2,), "range": (-160, 240)}
    data = opened("a", buffer.getvalue(), crops="full", **options)  # no suffix
    assert np.array_equal(whole(data), levels(values.astype(float) - 1024, -160, 240)[None])


def test_a_pack_keeps_all_bands(opened: Any, tmp_path: Path) -> None:
    data = opened("a.npy", npy(BYTES), **FOUR)
    pack(data, {}, tmp_path / "pack", lambda done, total: None)
    packed = Packed(CPU, path=str(tmp_path / "pack"))
    assert packed.channels == 4
    assert torch.equal(next(packed.bank(1))[0], next(data.bank(1))[0])


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"range": (0, 9)}, r"range.* is of the bands that data\.channels names"),
        ({"percentiles": (1, 99)}, r"percentiles.* is of the bands"),
        ({**FOUR, "range": (9, 9)}, r"\[9\.0, 9\.0\] should be two numbers that rise"),
        ({**FOUR, "range": (0, 9), "percentiles": (1, 99)}, r"data\.range says the range already"),
        ({**FOUR, "white": 4095}, r"white.* is of grey images that become RGB"),
        ({"channels": (1, 7)}, r"a\.png.*has 4 bands, and data\.channels asks for number 7"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(options: Any, message: str, opened: Any) -> None:
    with pytest.raises(UserError) as caught:
        opened("a.png", grey_png(BYTES.transpose(1, 2, 0)), **options)
    assert re.search(message, str(caught.value))


BAD: dict[str, tuple[str, bytes, str]] = {
    "no range": (
        "a.npy",
        npy(U16),
        r"values of 16 bits \(uint16\) have no stated range\); say in data\.range",
    ),
    "objects": ("a.npy", npy(np.array([[{}]]), allow_pickle=True), r"a NumPy array of object \[1, 1\]"),
    "complex numbers": ("a.npy", npy(U16.astype(complex)), r"a NumPy array of complex128"),
    "too short": ("a.npy", npy(U16)[:-1], r"the file is too short for uint16 \[4, 12, 10\]"),
    "no header": ("a.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr'", r"not a whole NumPy file"),
    "of a future version": ("a.npy", b"\x93NUMPY\x09\x00\x10\x00{'descr'", r"not a whole NumPy file"),
    "a huge one": (
        "a.npy",
        npy(U16).replace(b"(4, 12, 10), }", b"(4, 2**9,10)}  ").replace(b"2**9", b"9999"),
        r"too short|not a whole",
    ),
    "which axis": ("a.npy", npy(np.zeros((12, 10, 12), np.uint8)), r"does not tell which axis is the bands"),
    "a web page": ("a.npy", b"<html>", r"a web page, not an image"),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_and_unclear_files_are_named(name: str, opened: Any) -> None:
    file, content, message = BAD[name]
    with pytest.raises(UserError, match=r"a\.npy: unreadable image \(.*" + message):
        opened(file, content, channels=(1,), mean=(0.5,), std=(0.2,))


def test_values_that_are_no_numbers_are_refused(opened: Any) -> None:
    values = FLOAT.copy()
    values[1, 2, 3] = np.nan
    with pytest.raises(UserError, match="some of its values are no numbers"):
        opened("a.npy", npy(values), range=(0, 1), **FOUR)


def test_mean_of_another_number_of_channels_is_refused_with_what_it_would_be(opened: Any) -> None:
    with pytest.raises(Misfit) as caught:
        opened("a.npy", npy(BYTES), W, channels=(1, 2))
    square = BYTES[:2, 1 : 1 + W] / 255  # the middle of the longer side
    means, stds = ([round(float(of(band)), 3) for band in square] for of in (np.mean, np.std))
    assert caught.value.loc == ("data", "mean")
    assert (
        f"has 3 numbers, and there are 2 channels; in 1 images they have mean: {means}, std: {stds}"
        in str(caught.value)
    )


def test_arrays_are_images_only_where_bands_are_named(opened: Any, tmp_path: Path) -> None:
    photograph = grey_png(BYTES[:3].transpose(1, 2, 0))
    opened("features.npy", npy(BYTES), **FOUR)
    data = opened("a.png", photograph)
    assert data.train_images == 1
    assert "no image (.npy)" in str(data.found().passed_over[0])


# ---- crops


@pytest.mark.parametrize("C", [2, 4, 32])
@pytest.mark.parametrize("given", ["one size", "many sizes"])
@pytest.mark.parametrize("way", [by_crop, by_batch], ids=["CPU", "elsewhere"])
def test_each_band_is_cut_and_changed_as_a_grey_image(
    C: int, given: str, way: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_lab.kernels.crops.passes._kernels", lambda x: way)
    ops = ["crop", "flip", {"jitter": {"saturation": 0, "hue": 0}}, {"blur": 0.5}]
    images = torch.randint(256, (3, C, 20, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    many = [image[:, : 20 - 3 * i] for i, image in enumerate(images)]
    ours = policy(2, 8, ops)(
        images if given == "one size" else WholeImages.of(many), torch.Generator().manual_seed(1)
    )
    assert ours.shape == (2, 3, C, 8, 8)
    for c in range(C):
        band = images[:, c, None] if given == "one size" else WholeImages.of([x[c, None] for x in many])
        alone = policy(2, 8, ops)(band, torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours[:, :, c, None], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("augment", "named"),
    [
        (
            MultiCrop(global_size=8, local_views=0),
            "jitter's saturation, jitter's hue, grey, solarize are of grey",
        ),
        (
            ListedViews(
                groups=(Group.model_validate({"size": 8, "ops": ["crop", {"solarize": 0.1}]}),), pairs="none"
            ),
            "solarize are of grey or RGB images, and these have 4 channels",
        ),
        (
            ListedViews(
                groups=(
                    Group.model_validate(
                        {"size": 8, "ops": ["crop", {"kornia.RandomPlanckianJitter": {"p": 1.0}}]}
                    ),
                ),
                pairs="none",
            ),
            "operation 'kornia.RandomPlanckianJitter' refuses crops of 8 x 8 pixels and 4 channels",
        ),
    ],
)
def test_operations_on_colours_are_refused_by_name_before_anything_starts(
    augment: Any, named: str, opened: Any
) -> None:
    data = opened("a.npy", npy(BYTES), **FOUR)
    with pytest.raises(Misfit, match="refuses images of 4 channels.*" + named):
        check_data(data, augment, [], 1, CPU)
    check_data(data, Single(size=8), [], 1, CPU)


def test_pictures_say_which_bands_they_show() -> None:
    assert [with_bands("image", C) for C in (1, 2, 3, 4, 32)] == [
        "image",
        "image, band 1 of 2",
        "image",
        "image, bands 1-3 of 4",
        "image, bands 1-3 of 32",
    ]
