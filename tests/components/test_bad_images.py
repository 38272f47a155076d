"""Encoded images of every odd kind, as files: each gives the pixels that a viewer shows, or one clear line."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.errors import UserError
from dino_lab.imaging.decode import BadImage, decode

RED, GREEN, BLUE = (200, 10, 20), (20, 200, 10), (10, 20, 200)
LOSSLESS = {"GIF": {}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(content: bytes, size: int = 8) -> np.ndarray:
    return decode(Image.open(io.BytesIO(content)), size).astype(int)


def plain(colour: tuple[int, ...], mode: str = "RGB", shape: tuple[int, int] = (12, 9)) -> Image.Image:
    return Image.new(mode, shape, colour)


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8))


def assert_colour(found: np.ndarray, colour: tuple[int, ...], tolerance: int = 2) -> None:
    wanted = np.array(colour)[:, None, None]
    assert np.abs(found - wanted).max() <= tolerance, found[:, 0, 0]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_pixel_fills_the_square(kind: str) -> None:
    found = pixels(encoded(plain(RED, shape=(1, 1)), kind), 32)
    assert found.shape == (3, 32, 32)
    assert_colour(found, RED)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [plain(GREEN), plain(BLUE)]
    content = encoded(plain(RED), kind, save_all=True, append_images=frames, **LOSSLESS[kind])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert_colour(pixels(content), RED)


def test_transparency_of_a_first_frame_is_white() -> None:
    gif = Image.new("P", (12, 9), 0)
    gif.putpalette([*RED, *BLUE])
    second = gif.copy()
    second.putpixel((0, 0), 1)
    content = encoded(gif, "GIF", transparency=0, save_all=True, append_images=[second])
    assert_colour(pixels(content), (255, 255, 255))
    webp = encoded(plain((*RED, 0), "RGBA"), "WEBP", save_all=True, append_images=[plain(BLUE)])
    assert_colour(pixels(webp), (255, 255, 255))


def png16(kind: int, samples: list[int]) -> bytes:
    """A 16-bit PNG of 4 x 4 equal pixels, which Pillow does not write: kind 0 grey, 2 RGB, 4 and 6 with alpha."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    row = b"\0" + np.tile(np.array(samples, ">u2"), 4).tobytes()
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(row * 4))
        + chunk(b"IEND", b"")
    )


def tiff16(order: bytes) -> bytes:
    """A 16-bit grey TIFF of 4 x 4 pixels of 90 / 255, in either order of bytes."""
    end = ">" if order == b"MM" else "<"
    tags = [(256, 3, 4), (257, 3, 4), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 4), (279, 4, 32)]
    content = order + struct.pack(f"{end}HI", 42, 40) + np.full(16, 257 * 90, f"{end}u2").tobytes()
    content += struct.pack(f"{end}H", len(tags))
    for tag, kind, value in tags:
        content += struct.pack(f"{end}HHI", tag, kind, 1)
        content += struct.pack(f"{end}HH", value, 0) if kind == 3 else struct.pack(f"{end}I", value)
    return content + struct.pack(f"{end}I", 0)


DEEP = {
    "grey PNG": (png16(0, [257 * 90]), (90, 90, 90)),
    "RGB PNG": (png16(2, [257 * value for value in RED]), RED),
    "RGBA PNG": (png16(6, [*(257 * value for value in RED), 65535]), RED),
    "clear RGBA PNG": (png16(6, [*(257 * value for value in RED), 0]), (255, 255, 255)),
    "grey and alpha PNG": (png16(4, [257 * 90, 65535]), (90, 90, 90)),
    "big-endian TIFF": (tiff16(b"MM"), (90, 90, 90)),
    "little-endian TIFF": (tiff16(b"II"), (90, 90, 90)),
    "PGM": (b"P5 4 4 65535\n" + np.full(16, 257 * 90, ">u2").tobytes(), (90, 90, 90)),
    "12-bit PGM": (b"P5 4 4 4095\n" + np.full(16, 1445, ">u2").tobytes(), (90, 90, 90)),
    "PPM": (b"P6 4 4 65535\n" + np.tile(np.array(RED, ">u2") * 257, 16).tobytes(), RED),
}


@pytest.mark.parametrize("name", DEEP)
def test_sixteen_bits_are_scaled_not_clipped(name: str) -> None:
    content, colour = DEEP[name]
    assert_colour(pixels(content), colour, 0)


def test_more_than_sixteen_bits_are_refused() -> None:
    for value in (70_000, -1):
        with pytest.raises(BadImage, match=f"grey values from {value} to {value} are not of 16 bits"):
            pixels(encoded(Image.fromarray(np.full((4, 4), value, np.int32)), "TIFF"))


def test_palette_and_cmyk_give_the_colour_meant() -> None:
    assert_colour(pixels(encoded(plain(RED).convert("P", palette=Image.Palette.ADAPTIVE), "PNG")), RED)
    half = Image.new("P", (6, 6), 0)
    half.putpalette([*RED, *BLUE])
    over_white = tuple(round(128 / 255 * value + 127) for value in RED)
    assert_colour(pixels(encoded(half, "PNG", transparency=bytes([128, 255]))), over_white)
    cmyk = plain((0, 255, 255, 0), "CMYK")
    for kind in ("JPEG", "TIFF"):  # JPEG keeps the inks inverted, as Adobe does
        assert_colour(pixels(encoded(cmyk, kind)), (255, 0, 0))


# Of an image whose upper half is white: where the white is, once it is turned.
TURNS = {1: "top", 3: "bottom", 6: "right", 8: "left"}
HALVES = {
    "top": np.s_[:, :12, :],
    "bottom": np.s_[:, 20:, :],
    "left": np.s_[:, :, :12],
    "right": np.s_[:, :, 20:],
}
OPPOSITE = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNS)
def test_exif_turns_the_image(kind: str, orientation: int) -> None:
    upper = np.zeros((400, 400, 3), np.uint8)  # large enough that a JPEG is decoded at a fraction of its size
    upper[:200] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = pixels(encoded(Image.fromarray(upper), kind, exif=exif), 32)
    where = TURNS[orientation]
    assert found[HALVES[where]].min() > 240
    assert found[HALVES[OPPOSITE[where]]].max() < 15


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_damaged_exif_block_costs_no_image(kind: str) -> None:
    content = encoded(plain(RED), kind, exif=b"Exif\0\0garbage, and no TIFF header")
    assert_colour(pixels(content), RED)


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_refused(kind: str, tmp_path: Path) -> None:
    whole = encoded(noise(), kind)
    _expect_complaint(tmp_path, whole[: len(whole) // 2], kind)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_nothing_and_next_to_nothing_is_refused(content: bytes, tmp_path: Path) -> None:
    _expect_complaint(tmp_path, content, "PNG")


def test_half_an_animation_is_its_first_frame_or_refused() -> None:
    whole = encoded(plain(RED), "GIF", save_all=True, append_images=[noise(), noise()])
    assert_colour(pixels(whole[: len(whole) // 2]), RED)
    whole = encoded(noise(), "GIF", save_all=True, append_images=[plain(RED)])
    with pytest.raises(BadImage, match="truncated"):
        pixels(whole[: len(whole) // 2])


def _expect_complaint(root: Path, content: bytes, kind: str) -> None:
    """One line that names the file; and the image, and no other one, is left out on request."""
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        (root / split / "a" / "good.png").write_bytes(encoded(noise(), "PNG"))
    (root / "train" / "a" / f"bad.{kind.lower()}").write_bytes(content)
    with pytest.raises(
        UserError, match=r"^[^\n]*bad\.\w+: unreadable image \([^\n]+\); repair or remove it[^\n]*$"
    ):
        ImageFolder(torch.device("cpu"), path=str(root), size=8)
    data = ImageFolder(torch.device("cpu"), path=str(root), size=8, options=FileOptions(on_bad_image="skip"))
    assert (data.skipped, data.train_images) == (1, 1)
