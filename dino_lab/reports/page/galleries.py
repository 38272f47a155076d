"""Small pictures in rows, for the report of a run: crops, attention, tokens and nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.linalg import eigh

from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.pictures import (
    HeatScale,
    bytes_of,
    colour_bar,
    data_address,
    overlay,
    picture_of,
    with_bands,
)
from dino_lab.reports.page.samples import Samples, ask_shown
from dino_lab.runs.open import SavedRun
from dino_lab.training.crops import crops_of

SIDE = 128  # pixels of a side of a picture, at most
LOSSLESS = 64  # pixels of a side up to which a picture is kept bit for bit; larger ones are JPEG
CROPPED_IMAGES = 6
NEIGHBOURS = 5

Mark = Literal["", "right", "wrong"]


@dataclass(frozen=True)
class GalleryPicture:
    """One picture as a data address, its caption, and whether it is marked as right or wrong."""

    source: str
    caption: str = ""
    mark: Mark = ""


@dataclass(frozen=True)
class GalleryScale:
    """The colours of all maps of a gallery: a bar (a data address), numbers at places in per cent, a unit."""

    bar: str
    ticks: tuple[tuple[float, str], ...]
    unit: str


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures below their headings, each with a name of its own where there are `names`."""

    headings: tuple[str, ...]
    rows: list[list[GalleryPicture]]
    names: tuple[str, ...] = ()
    scale: GalleryScale | None = None


@dataclass(frozen=True)
class Neighbours:
    """A gallery, and which share of the neighbours of all sampled test images has the image's label."""

    gallery: Gallery
    share_right: float
    among: int


def crops(run: SavedRun) -> Gallery:
    """One row an image: itself, then its views in the first step, with their size and who sees them."""
    images, views = crops_of(run.spec, run.data, run.augment, run.device, CROPPED_IMAGES)
    teacher = views.pairs.shape[1]
    headings = [with_bands("image", run.data.channels)]
    columns = [[_small(picture_of(image)) for image in images]]
    for group in views.crops:
        for view in group:  # [B, C, H, W]
            who = "both" if len(headings) <= teacher else "student"
            headings.append(f"{view.shape[-1]} px, {who}")
            columns.append([_small(picture_of(bytes_of(crop))) for crop in view])
    return Gallery(tuple(headings), [list(row) for row in zip(*columns, strict=True)])


def attention(encode: Encoder, samples: Samples) -> Gallery:
    """One column an image: itself, the mean of the heads, each head; all maps on one scale.

    A UserError where the backbone has no attention, or it is not finite.
    """
    images = samples.test.images[samples.shown]
    maps = ask_shown(encode, samples, "attention")  # [N, heads, h, w]
    if not maps.isfinite().all():
        raise UserError("it is not finite; the network has diverged")
    scale = HeatScale.of(maps, "attention")
    rows = [[_small(picture_of(image)) for image in images]]
    for head in torch.cat([maps.mean(1, keepdim=True), maps], 1).unbind(1):  # [N, h, w]
        rows.append([_small(overlay(*pair, scale, SIDE)) for pair in zip(images, head, strict=True)])
    names = (with_bands("image", images.shape[1]), "mean", *(f"head {i + 1}" for i in range(maps.shape[1])))
    ticks = tuple((100 * place, text) for place, text in scale.ticks())
    shown = GalleryScale(data_address(colour_bar(240, 12), "PNG"), ticks, scale.unit)
    return Gallery(samples.shown_names, rows, names, shown)


def tokens(encode: Encoder, samples: Samples) -> Gallery:
    """One column an image: itself above, its tokens below; a UserError where the backbone has none."""
    images = samples.test.images[samples.shown]
    found = ask_shown(encode, samples, "tokens")  # [N, D, h, w]
    if not found.isfinite().all():
        raise UserError("the tokens are not finite; the network has diverged")
    coloured = F.interpolate(principal_colours(found), (SIDE, SIDE), mode="nearest-exact")
    whole = [_small(picture_of(image)) for image in images]
    return Gallery(
        samples.shown_names,
        [whole, [_small(picture_of(bytes_of(one))) for one in coloured]],
        (with_bands("image", images.shape[1]), "tokens"),
    )


def principal_colours(tokens: Tensor) -> Tensor:
    """Tokens [N, D, h, w] to red, green and blue in 0..1, [N, 3, h, w].

    The colours are the first three principal components over all tokens, each scaled between its 1st and 99th
    percentile.
    """
    flat = tokens.movedim(1, -1).flatten(0, 2).double()  # [N h w, D]
    centred = flat - flat.mean(0)
    _, vectors = eigh(centred.T @ centred)  # by rising eigenvalue
    axes = vectors.flip(1)[:, :3]
    # A component is known up to its sign: here its largest entry is positive.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    projected = F.pad(centred @ axes, (0, 3 - axes.shape[1]))  # [N h w, 3]
    low, high = projected.quantile(0.01, 0), projected.quantile(0.99, 0)
    scaled = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return scaled.float().unflatten(0, (len(tokens), *tokens.shape[2:])).movedim(-1, 1)


def neighbours(samples: Samples) -> Neighbours:
    """Each shown test image and its nearest in the bank, by cosine."""
    test, bank = samples.test, samples.bank
    cosine, nearest = nearest_in(test.features, bank.features, NEIGHBOURS)
    right = bank.labels[nearest] == test.labels[:, None]  # [N, k]
    rows = []
    for i in samples.shown.tolist():
        found = [
            _small(
                picture_of(bank.images[at]),
                f"{samples.names[int(bank.labels[at])]}, {value:.3f}",
                "right" if right[i, j] else "wrong",
            )
            for j, (at, value) in enumerate(zip(nearest[i].tolist(), cosine[i].tolist(), strict=True))
        ]
        rows.append([_small(picture_of(test.images[i]), samples.names[int(test.labels[i])]), *found])
    headings = (
        with_bands("test image", test.images.shape[1]),
        *(f"{j + 1}." for j in range(nearest.shape[1])),
    )
    return Neighbours(Gallery(headings, rows), right.double().mean().item(), len(test))


def nearest_in(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and positions [N, k] of the nearest of unit-length features."""
    found = (queries @ bank.T).topk(min(k, len(bank)))
    return found.values, found.indices


def _small(picture: Image.Image, caption: str = "", mark: Mark = "") -> GalleryPicture:
    """A picture of a gallery, scaled down to at most `SIDE`."""
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE))
    return GalleryPicture(
        data_address(picture, "PNG" if max(picture.size) <= LOSSLESS else "JPEG"), caption, mark
    )
