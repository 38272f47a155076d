"""Which bands of a data set are used, their range of values, and their mean and deviation."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from dino_lab.components.data._storage import (
    SAMPLE,
    Source,
    Storage,
    bad_image_error,
    is_listing,
    opened_row,
    workers,
)
from dino_lab.errors import Misfit
from dino_lab.imaging.bands import Bands, Values, values_of
from dino_lab.imaging.decode import BadImage

PIXELS = 10_000  # of an image, evenly spread, that percentiles are taken of
Pair = tuple[float, float]


def chosen_bands(
    channels: tuple[int, ...] | None, limits: Pair | None, percentiles: Pair | None, white: float | None
) -> Bands | None:
    """The bands that `data.channels` names, with the range of `data.range`; None where none are named.

    A Misfit where keys of bands are given without them, or contradict each other.
    """
    if channels is not None and white is not None:
        raise Misfit(("data", "white"), "is of grey images that become RGB; data.range is of data.channels")
    for key, pair in (("range", limits), ("percentiles", percentiles)):
        if pair is not None and channels is None:
            raise Misfit(("data", key), "is of the bands that data.channels names")
        if pair is not None and not pair[0] < pair[1]:
            raise Misfit(("data", key), f"{list(pair)} should be two numbers that rise")
    if limits is not None and percentiles is not None:
        raise Misfit(("data", "percentiles"), "data.range says the range already; give one of them")
    if channels is None:
        return None
    return Bands(channels, None if limits is None else (limits,) * len(channels))


def ranges_of(source: Source, rows: Tensor, bands: Bands, percentiles: Pair, max_pixels: int) -> Bands:
    """The bands with the range between two percentiles of each in a sample of images.

    Images that cannot be read are left to whoever loads them; a UserError where that is all of the sample.
    """
    sample = rows[spread(len(rows))].tolist()

    def values(row: int) -> Values | BadImage:
        try:
            every = values_of(opened_row(source, row), bands, max_pixels).reshape(len(bands.numbers), -1)
        except BadImage as error:
            return error
        return every[:, :: max(1, every.shape[1] // PIXELS)]

    with ThreadPoolExecutor(workers()) as pool:
        given = list(pool.map(values, sample))
    read = [each for each in given if not isinstance(each, BadImage)]
    if not read:
        assert isinstance(given[0], BadImage)
        raise bad_image_error(source, sample[0], given[0])
    found = np.concatenate(read, axis=1)
    ends = np.percentile(found[:, np.isfinite(found).all(0)], percentiles, axis=1).T  # [C, 2]
    flat = [number for number, (low, high) in zip(bands.numbers, ends, strict=True) if not low < high]
    if flat:
        raise Misfit(
            ("data", "percentiles"),
            f"band {flat[0]} has one value alone between them in {len(read)} images; set data.range",
        )
    return Bands(bands.numbers, tuple((float(low), float(high)) for low, high in ends))


def bands_notes(bands: Bands | None, percentiles: Pair | None) -> tuple[str, ...]:
    """What is made of the values of each band, in a line where there is a range."""
    if bands is None or bands.ranges is None:
        return ()
    each = zip(bands.numbers, bands.ranges, strict=True)
    said = "; ".join(f"band {number} {low:g} to {high:g}" for number, (low, high) in each)
    ends = (
        "" if percentiles is None else f", percentiles {percentiles[0]:g} and {percentiles[1]:g} of a sample,"
    )
    return (f"values become 256 levels between these{ends} and are clipped to them: {said}",)


def check_statistics(
    storage: Storage, images: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """A Misfit where `mean` or `std` is not of so many channels; it says what they are in a sample.

    Where images are only listed, whoever measures them is not kept from it.
    """
    if is_listing():
        return
    for key, given in (("mean", mean), ("std", std)):
        if len(given) != channels:
            rows = spread(images)
            means, stds = _measured(images for images, _ in storage.batches(rows.split(16)))
            raise Misfit(
                ("data", key),
                f"has {len(given)} numbers, and there are {channels} channels; in {len(rows)} images they "
                f"have mean: {means}, std: {stds}",
            )


def spread(images: int) -> Tensor:
    """Positions of a sample of so many images."""
    return torch.arange(0, images, max(1, images // SAMPLE))[:SAMPLE]


def _measured(batches: Iterator[Tensor]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of images uint8 [B, C, H, W] as 0..1."""
    sums: Tensor | float = 0.0
    count = 0
    for images in batches:
        x = images.cpu().double() / 255
        sums = sums + torch.stack([x.sum((0, 2, 3)), x.square().sum((0, 2, 3))])
        count += x.numel() // x.shape[1]
    assert isinstance(sums, Tensor), "of at least one image"
    mean, square = sums / count
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return [[round(value, 3) for value in each.tolist()] for each in (mean, deviation)]  # type: ignore[return-value]
