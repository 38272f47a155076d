"""Values that a file leaves open: the range of grey, fourth and further bands, and how large an image may be."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.components.data import _storage
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.errors import UserError
from dino_lab.registry import registry

CPU = torch.device("cpu")
SIZE = 16
Images = list[tuple[str, Any]]  # suffix, and pixels or content


def opened(root: Path, images: Images, **given: Any) -> ImageFolder:
    """The first image to train on, the others to test on."""
    for i, (suffix, content) in enumerate(images):
        folder = root / ("train" if i == 0 else "test") / "a"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{i}{suffix}"
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            Image.fromarray(content).save(file)
    return again(root, **given)


def again(root: Path, **given: Any) -> ImageFolder:
    """What lies in the folder already."""
    keys = {"name": "image_folder", "path": str(root), "size": SIZE, **given}
    params = registry.find("data", "image_folder").params.model_validate(keys)
    data = registry.build("data", params, CPU)
    assert isinstance(data, ImageFolder)
    return data


def pixels(data: ImageFolder) -> np.ndarray:
    """All images, [N, 3, H, W]."""
    return torch.cat([*(x for x, _ in data.bank(9)), *(x for x, _ in data.test(9))]).numpy().astype(int)


def ramp(least: float, most: float, kind: type, shape: tuple[int, int] = (SIZE, SIZE)) -> np.ndarray:
    return np.linspace(least, most, shape[0] * shape[1]).reshape(shape).astype(kind)


def tiff(values: np.ndarray, extra: int | None = None) -> bytes:
    """Bands [H, W, C] as an interleaved TIFF; `extra` is what its ExtraSamples say of those after three."""
    H, W, C = values.shape
    bits, signed = values.dtype.itemsize * 8, values.dtype.kind == "i"
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    after = 8 + len(data)
    where = after if C > 2 else bits * (1 + 2**16)  # two numbers stand in the entry itself
    tags = [
        (256, 4, 1, W),
        (257, 4, 1, H),
        (258, 3, C, where),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if C > 2 else 1),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, C), (278, 4, 1, H), (279, 4, 1, len(data)), (284, 3, 1, 1)]
    tail = struct.pack(f"<{C}H", *[bits] * C)
    if extra is not None:
        more = C - 3 if C > 2 else C - 1
        tags.append((338, 3, more, extra if more == 1 else after + len(tail)))
        tail += struct.pack(f"<{more}H", *[extra] * more)
    if signed:
        tags.append((339, 3, 1, 2))
    head = b"II*\0" + struct.pack("<I", after + len(tail))
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return head + data + tail + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)


# ---- grey of more than 8 bits


@pytest.mark.parametrize(
    ("most", "white"), [(200, 255), (255, 255), (256, 511), (4000, 4095), (16000, 16383), (40000, 65535)]
)
@pytest.mark.parametrize("stream", [False, True])
def test_grey_is_scaled_by_the_bits_of_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, white: int, stream: bool
) -> None:
    """A dark image stays dark beside a light one, whichever split it is in."""
    if stream:
        monkeypatch.setattr(_storage, "RESIDENT_SHARE", 0.0)
        monkeypatch.setattr(_storage, "workers", lambda: 1)
    images = [ramp(0, most / 8, np.uint16), ramp(0, most, np.uint16), ramp(0, most, np.int32)]
    data = opened(tmp_path, list(zip((".png", ".png", ".tif"), images, strict=True)))
    wanted = np.stack([np.round(image / white * 255) for image in images])[:, None].repeat(3, 1)
    assert np.abs(pixels(data) - wanted).max() <= 1  # halves may be rounded up or to even
    notes = [note for note in data.found().notes if "16-bit grey" in note]
    bits = white.bit_length()
    assert len(notes) == (bits < 16)
    assert all(f"scaled as {bits} bits, white is {white}" in note for note in notes)


def test_white_may_be_said(tmp_path: Path) -> None:
    images = [ramp(0, 1000, np.uint16), ramp(0, 1500, np.uint16)]
    data = opened(tmp_path, [(".png", image) for image in images], white=2000)
    wanted = np.stack([image * (255 / 2000) for image in images])[:, None]
    assert np.abs(pixels(data) - wanted).max() <= 0.5 + 1e-9
    assert not any("grey" in note for note in data.found().notes)
    with pytest.raises(
        UserError, match=r"grey values from 0 to 1500 are not in 0\.\.1200\); data\.white says"
    ):
        again(tmp_path, white=1200)


def test_floating_point_takes_white(tmp_path: Path) -> None:
    image = ramp(0, 1, np.float32)
    with pytest.raises(UserError, match=r"no stated range\); say in data\.white which value is white"):
        opened(tmp_path, [(".tif", image)] * 2)
    data = again(tmp_path, white=1.0)
    assert np.abs(pixels(data)[0, 0] - image * 255).max() <= 0.5 + 1e-4
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "train" / "a" / "nan.tif")
    with pytest.raises(UserError, match=r"nan\.tif: .*nan"):
        again(tmp_path, white=1.0)


def test_a_range_that_the_file_states_is_kept(tmp_path: Path) -> None:
    """A graymap says its largest value, and Pillow scales by it."""
    dark = b"P5 4 4 65535\n" + np.full(16, 2570, ">u2").tobytes()
    data = opened(tmp_path, [(".pgm", dark), (".pgm", dark)])
    assert (pixels(data) == 10).all()
    assert not any("grey" in note for note in data.found().notes)


def test_dark_colours_of_16_bits_are_told(tmp_path: Path) -> None:
    twelve = np.random.default_rng(0).integers(0, 4096, (SIZE, SIZE, 3)).astype(np.uint16)
    notes = opened(tmp_path, [(".tif", tiff(twelve))] * 2).found().notes
    assert any(note.startswith("2 images have 16-bit colours, none above 15 of 255") for note in notes)
    whole = opened(tmp_path / "whole", [(".tif", tiff(twelve * 16))] * 2)
    assert not any("16-bit" in note for note in whole.found().notes)


# ---- bands


def bands(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, count), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["png", "alpha", "unspecified", "six", "two"])
def test_bands_that_are_no_colours_change_no_colour(tmp_path: Path, kind: str) -> None:
    values = bands({"six": 6, "two": 2}.get(kind, 4))
    content: Any = {
        "png": lambda: values,
        "alpha": lambda: tiff(values, 2),
        "unspecified": lambda: tiff(values, 0),
        "six": lambda: tiff(values, 0),
        "two": lambda: tiff(values, 0),
    }[kind]()
    suffix = ".png" if kind == "png" else ".tif"
    data = opened(tmp_path, [(suffix, content), (suffix, content)])
    colours = values[..., :1].repeat(3, 2) if kind == "two" else values[..., :3]
    assert (pixels(data) == colours.transpose(2, 0, 1)).all()
    note = data.found().notes[0]
    assert note.startswith("2 images have ")
    assert ("a fourth band that varies as a colour does" if kind in ("png", "alpha") else "bands") in note


def test_transparency_is_laid_over_white_and_told(tmp_path: Path) -> None:
    cut_out = bands(4)
    cut_out[..., 3] = 255
    cut_out[:, :6, 3] = 0
    data = opened(tmp_path, [(".png", cut_out)] * 2)
    wanted = cut_out[..., :3].astype(int)
    wanted[:, :6] = 255
    assert (pixels(data) == wanted.transpose(2, 0, 1)).all()
    assert data.found().notes[0].startswith("2 images have transparency: it is laid over white")


def test_most_of_the_fourth_bands_decide(tmp_path: Path) -> None:
    """Water is black in the near infrared: one such image among others is read as they are."""
    water = bands(4)
    water[..., 3] = 0
    data = opened(tmp_path, [(".png", water), (".png", bands(4, 1)), (".png", bands(4, 2))])
    assert (pixels(data)[0] == water[..., :3].transpose(2, 0, 1)).all()


def test_bands_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for name, values, said in (
        ("seven", bands(7).astype(np.float32), "7 bands of 32 bits"),
        ("five", bands(5).astype(np.uint16), "5 bands of 16 bits"),
    ):
        with pytest.raises(UserError, match=rf"a TIFF file of {said}.*; write the three bands"):
            opened(tmp_path / name, [(".tif", tiff(values)), (".tif", tiff(values))])


def test_further_pictures_of_a_file_are_told(tmp_path: Path) -> None:
    grey = Image.fromarray(bands(3))
    data = opened(tmp_path, [(".png", bands(3)), (".png", bands(3))])
    assert data.found().notes[:1] == data.found().notes  # one class, and nothing else
    grey.save(tmp_path / "train" / "a" / "pages.tif", save_all=True, append_images=[grey])
    note = again(tmp_path).found().notes[0]
    assert note.startswith("1 image has several pictures in a file: the first is used (first: ")


# ---- size


def test_the_largest_image_is_a_parameter(tmp_path: Path) -> None:
    large = bands(3).repeat(4, 0).repeat(4, 1)  # 64 x 64
    with pytest.raises(UserError, match=r"64 x 64 pixels are more than 4000\); raise data\.max_pixels"):
        opened(tmp_path, [(".png", large)] * 2, max_pixels=4000)
    assert again(tmp_path, max_pixels=4096).train_images == 1
    Image.new("1", (14_000, 14_000)).save(tmp_path / "train" / "a" / "slide.png")
    with pytest.raises(UserError, match="14000 x 14000 pixels are more than 178956970"):
        again(tmp_path)
