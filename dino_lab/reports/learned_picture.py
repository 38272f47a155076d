"""What a network has learned, in one picture: some test images before and after training."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dino_lab.errors import UserError, printable
from dino_lab.evaluation.attention_maps import Maps, maps_of
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.pictures import HeatScale, colour_bar, overlay, picture_of, png, with_bands
from dino_lab.protocols import Data, GivesAttention, GivesOutputs, GivesTokens, ability
from dino_lab.registry import Registry
from dino_lab.reports.page.galleries import nearest_in
from dino_lab.reports.page.samples import Samples, same_samples, take_samples
from dino_lab.runs.files import LEARNED, replace_file
from dino_lab.runs.open import open_run

NEIGHBOURS = 3
MOST = (40, 800)  # test images of which some are shown, and training images among which neighbours are sought
WORK = 2e11  # multiplications of one of the two networks: a little more than a second on two cores
FEWEST = 3  # cells of a side of a map
TILE, GAP, FRAME = 96, 4, 4  # pixels: side of a picture, between two, and of the frame of a neighbour
APART = 24  # pixels between the image, before and after
MARGIN, CAPTION = 12, 17
HEAD, FOOT = 108, 52  # above and below the rows
MAPS = {
    "attention": "attention of CLS, mean of heads",
    "similarity": "likeness of a place and the whole image",
}
BAR = 160  # width of the colours
INK, PALE, RIGHT = "#222222", "#767676", "#00a037"


@dataclass(frozen=True)
class _Seen:
    """What one network makes of the shown images."""

    maps: Maps | None
    nearest: Tensor  # [N, k], rows of the bank
    right: Tensor  # bool [N, k], of the same class
    share_right: float  # of the neighbours of all sampled test images


def write_learned(
    folder: Path, registry: Registry, device: torch.device, data: Data, evaluation_data: Data | None = None
) -> Path:
    """Write `learned.png` into a run's folder; a UserError where there is nothing that can be drawn.

    Each row is a test image, the first of its class in an order drawn with a fixed seed; beside it where the
    network looks and the nearest of some training images, with the first weights and with the last.
    `data` and `evaluation_data` are the run's; the images are of the second.
    """
    before = open_run(folder, registry, device, untrained=True, data=data, evaluation_data=evaluation_data)
    after = open_run(folder, registry, device, data=data, evaluation_data=evaluation_data)
    with before.encoder("teacher") as encode:
        samples = take_samples(before, encode, MOST, WORK)
        first = _seen(encode, samples)
    with after.encoder("teacher") as encode:
        last = _seen(encode, same_samples(samples, encode))
    picture = _drawn(before.spec.name, samples, first, last)
    replace_file(folder / LEARNED, png(picture))
    return folder / LEARNED


def _seen(encode: Encoder, samples: Samples) -> _Seen:
    if not samples.finite:
        raise UserError("the features are not finite; the network has diverged")
    test, bank = samples.test, samples.bank
    nearest = nearest_in(test.features, bank.features, NEIGHBOURS)[1]
    right = bank.labels[nearest] == test.labels[:, None]
    shown = samples.shown
    return _Seen(_maps(encode, samples), nearest[shown], right[shown], right.double().mean().item())


def _maps(encode: Encoder, samples: Samples) -> Maps | None:
    """Attention, or the likeness of tokens to the feature that is their mean.

    None where the backbone has neither, or a grid of a few cells, on which nothing can be seen.
    """
    backbone = encode.network.backbone
    if not any(ability(backbone, one) for one in (GivesAttention, GivesTokens, GivesOutputs)):
        return None
    output = encode.outputs(samples.test.images[samples.shown])
    if output.attention is None and output.tokens is None:
        return None
    maps = maps_of(output)
    return Maps(maps.kind, maps.values.cpu()) if min(maps.values.shape[-2:]) >= FEWEST else None


def _drawn(name: str, samples: Samples, before: _Seen, after: _Seen) -> Image.Image:
    """The sheet: a row for each image, and beside it both networks."""
    labelled, count = len(samples.names) > 1, len(samples.shown)
    scale = None
    if before.maps is not None and after.maps is not None:  # one scale for both
        scale = HeatScale.of(torch.cat([before.maps.mean(), after.maps.mean()]), before.maps.kind)
    half = (before.nearest.shape[1] + (scale is not None)) * (TILE + GAP) - GAP
    left = [MARGIN + TILE + APART, MARGIN + TILE + 2 * APART + half]
    step = TILE + GAP + (CAPTION if labelled else 0)
    foot = HEAD + count * step + GAP
    sheet = Image.new("RGB", (left[1] + half + MARGIN, foot + FOOT), "white")
    title = f"{name}: {count} test images, before and after training"
    _write(sheet, MARGIN, MARGIN, with_bands(title, samples.test.images.shape[1]), 17)
    _write(sheet, MARGIN, HEAD - 18, "test image", 12, PALE)
    for x, when, seen in zip(left, ("before training", "after training"), (before, after), strict=True):
        _write_heading(sheet, x, half, when, seen, len(samples.test) if labelled else 0)
    for i, at in enumerate(samples.shown.tolist()):
        y, image = HEAD + i * step, samples.test.images[at]
        sheet.paste(_tile(picture_of(image)), (MARGIN, y))
        if labelled:
            _write(
                sheet, MARGIN, y + TILE, samples.names[int(samples.test.labels[at])], 12, INK, TILE + APART
            )
        for x, seen in zip(left, (before, after), strict=True):
            for picture in _row(samples, seen, i, scale, labelled):
                sheet.paste(picture, (x, y))
                x += TILE + GAP
    _write_legend(sheet, foot, before.maps.kind if before.maps is not None else "", scale, labelled)
    return sheet


def _row(
    samples: Samples, seen: _Seen, i: int, scale: HeatScale | None, labelled: bool
) -> Iterator[Image.Image]:
    """Where a network looks in the shown image `i`, and the neighbours, those of its class in a frame."""
    if scale is not None and seen.maps is not None:
        image = samples.test.images[samples.shown[i]]
        yield _tile(overlay(image, seen.maps.mean()[i], scale))
    for row, right in zip(seen.nearest[i].tolist(), seen.right[i].tolist(), strict=True):
        tile = _tile(picture_of(samples.bank.images[row]))
        if right and labelled:
            ImageDraw.Draw(tile).rectangle((0, 0, TILE - 1, TILE - 1), outline=RIGHT, width=FRAME)
        yield tile


def _write_heading(sheet: Image.Image, x: int, width: int, when: str, seen: _Seen, images: int) -> None:
    """What stands above the pictures of one network; the share is of so many `images`, 0 without classes."""
    _write(sheet, x, HEAD - 60, when, 16, INK, width)
    if images:
        shown = f"{int(seen.right.sum())} of {seen.right.numel()}"
        whole = f"{seen.share_right:.0%} over {images} test images"
        _write(sheet, x, HEAD - 38, f"same class: {shown}; {whole}", 13, RIGHT, width)
    if seen.maps is not None:
        _write(sheet, x, HEAD - 18, seen.maps.kind, 12, PALE, TILE)
        x += TILE + GAP
    _write(sheet, x, HEAD - 18, "nearest training images", 12, PALE)


def _write_legend(sheet: Image.Image, y: int, kind: str, scale: HeatScale | None, labelled: bool) -> None:
    """What the colours mean."""
    x = MARGIN
    if labelled:
        ImageDraw.Draw(sheet).rectangle((x, y + 4, x + 16, y + 20), outline=RIGHT, width=FRAME)
        _write(sheet, x + 24, y + 3, "same class", 13)
        x += TILE + APART
    if scale is None:
        return
    sheet.paste(colour_bar(BAR, 14), (x, y + 5))
    for place, text in scale.ticks():
        at = x + round(place * BAR)
        ImageDraw.Draw(sheet).line((at, y + 5, at, y + 22), fill=INK)
        _write(sheet, at + 3, y + 19, text, 12)
    _write(sheet, x + BAR + 40, y + 3, f"{MAPS[kind]}: {scale.unit}", 13)


def _tile(picture: Image.Image) -> Image.Image:
    """A square of `TILE` pixels; small images keep their pixels as squares."""
    small = max(picture.size) <= TILE
    return picture.resize((TILE, TILE), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def _write(
    sheet: Image.Image, x: int, y: int, text: str, size: int, colour: str = INK, width: int | None = None
) -> None:
    """A line of text, cut with dots where it is wider than `width`, or than the sheet."""
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    room = sheet.width - x - MARGIN if width is None else width
    shown = printable(text)
    while pen.textlength(shown, font=font) > room and len(shown) > 1:
        shown = shown.removesuffix("...")[:-1] + "..."
    pen.text((x, y), shown, fill=colour, font=font)
