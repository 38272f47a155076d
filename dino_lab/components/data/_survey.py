"""What a run would see of a data set, image by image, in memory of 24 bytes an image."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._storage import Source, Split, opened_row, workers
from dino_lab.components.data._traits import Traits
from dino_lab.imaging.bands import Raster, values_of
from dino_lab.imaging.decode import PLAIN, BadImage, Pixels, Reading, examine
from dino_lab.protocols import Data

SPLITS: tuple[Split, Split] = ("train", "test")
CHUNK = 64  # images that a thread takes at once
EXAMPLES = 5
SHOWN = {"train": 24, "test": 16}  # images on the contact sheet
DEPTHS = {"1": "1 bit", "I": "32 bit", "F": "float"}  # of Pillow's modes; I;16 has 16 bits, others 8
Progress = Callable[[int, int], None]


@dataclass
class _Image:
    """One image, as it lies and as a run sees it."""

    format: str
    kind: str  # bands and depth
    width: int
    height: int
    low: float
    high: float
    pixels: Pixels  # [C, size, size]

    @property
    def digest(self) -> int:
        """64 bits of what a run sees, by which images are told apart."""
        return int.from_bytes(hashlib.blake2b(self.pixels.tobytes(), digest_size=8).digest(), "little")


@dataclass
class SplitSurvey:
    """What was seen of one split."""

    images: int
    looked_at: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    widths: array[int] = field(default_factory=lambda: array("I"))
    heights: array[int] = field(default_factory=lambda: array("I"))
    low: float = float("inf")
    high: float = float("-inf")
    unreadable: int = 0
    unreadable_first: list[str] = field(default_factory=list)
    rows: array[int] = field(default_factory=lambda: array("Q"))  # positions in the split
    digests: array[int] = field(default_factory=lambda: array("Q"))
    shown: list[tuple[int, Pixels]] = field(default_factory=list)  # positions and pixels

    def add(self, row: int, image: _Image, shown: bool) -> None:
        """Count an image."""
        self.looked_at += 1
        self.formats[image.format] += 1
        self.kinds[image.kind] += 1
        self.widths.append(image.width)
        self.heights.append(image.height)
        self.low, self.high = min(self.low, image.low), max(self.high, image.high)
        self.rows.append(row)
        self.digests.append(image.digest)
        if shown:
            self.shown.append((row, image.pixels))

    def add_unreadable(self, where: str, reason: str) -> None:
        """Count an image that cannot be read."""
        self.looked_at += 1
        self.unreadable += 1
        if len(self.unreadable_first) < EXAMPLES:
            self.unreadable_first.append(f"{where}: {reason}")


@dataclass(frozen=True)
class Duplicates:
    """Images that are equal as a run sees them."""

    train: int  # training images that an earlier one is equal to
    test: int
    across: int  # test images that a training image is equal to
    other_label: int  # of all of these, those whose label is another than that of the one they are equal to
    first: list[tuple[str, str]]  # some of those across, or else within a split, by name


@dataclass
class Survey:
    """What was seen of a data set."""

    splits: dict[Split, SplitSurvey]
    duplicates: Duplicates
    mean: list[float]  # per channel, of the training images in 0..1; of the test images where there are none
    std: list[float]
    notes: tuple[str, ...]


class _Moments:
    """Mean and standard deviation of each channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: NDArray[np.float64] = np.zeros(1)
        self.squares: NDArray[np.float64] = np.zeros(1)

    def add(self, pixels: Pixels) -> None:
        """Take the pixels [C, H, W] of an image in."""
        values = pixels.reshape(len(pixels), -1).astype(np.float64) / 255
        self.count += values.shape[1]
        self.sums = self.sums + values.sum(1)
        self.squares = self.squares + (values**2).sum(1)

    def result(self) -> tuple[list[float], list[float]]:
        """Both, by channel."""
        if not self.count:
            return [], []
        mean = self.sums / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, 0))
        return mean.tolist(), std.tolist()


def survey(data: Data, limit: int | None, progress: Progress) -> Survey:
    """Look at all images of both splits, or at `limit` of them, evenly spread.

    `progress` is told how many of how many were looked at. Where images turn out to have grey values of fewer
    bits than their files, they are looked at once more, scaled as a run scales them.
    """
    asked = getattr(data, "reading", PLAIN)
    found, traits = _look(data, limit, asked, progress)
    settled = traits.settle(asked)
    if settled != asked:
        found, _ = _look(data, limit, settled, progress)
    found.notes = traits.notes(asked, settled)
    return found


def _look(data: Data, limit: int | None, reading: Reading, progress: Progress) -> tuple[Survey, Traits]:
    counts: dict[Split, int] = {"train": data.train_images, "test": data.test_images}
    positions = {split: _evenly_spread(counts[split], limit).tolist() for split in SPLITS}
    total, done, traits = sum(map(len, positions.values())), 0, Traits()
    splits: dict[Split, SplitSurvey] = {}
    moments: dict[Split, _Moments] = {}
    for split in SPLITS:
        seen = splits[split] = SplitSurvey(counts[split])
        moment = moments[split] = _Moments()
        on_sheet = {positions[split][i] for i in _evenly_spread(len(positions[split]), SHOWN[split]).tolist()}
        for position, image in _images(data, split, positions[split], reading, traits):
            if isinstance(image, _Image):
                seen.add(position, image, position in on_sheet)
                moment.add(image.pixels)
            else:
                seen.add_unreadable(*image)
            done += 1
            progress(done, total)
    mean, std = moments["train" if data.train_images else "test"].result()
    return Survey(splits, _duplicates(data, splits), mean, std, ()), traits


def _evenly_spread(images: int, most: int | None) -> Tensor:
    """Positions of at most `most` of the images, from the first on, evenly spread."""
    if most is None or most >= images:
        return torch.arange(images)
    return torch.arange(most) * images // most


def _images(
    data: Data, split: Split, positions: Sequence[int], reading: Reading, traits: Traits
) -> Iterator[tuple[int, _Image | tuple[str, str]]]:
    """Position, and image or where and why it cannot be read; what may be meant otherwise is counted."""
    found = _source(data, split)
    if found is None:
        yield from _decoded(data, split, positions)
        return
    source, rows = found[0], found[1][torch.tensor(positions, dtype=torch.int64)].tolist()

    def part(some: Sequence[int]) -> tuple[list[_Image | tuple[str, str]], Traits]:
        its = Traits()
        return [_seen(source, row, data.size, reading, its) for row in some], its

    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    numbered = iter(positions)
    with ThreadPoolExecutor(workers()) as pool:
        # A few at a time: `map` of all would decode on while nobody takes them.
        ahead = 2 * workers()
        for first in range(0, len(chunks), ahead):
            for images, its in pool.map(part, chunks[first : first + ahead]):
                traits.merge(its)
                yield from ((next(numbered), image) for image in images)


def _source(data: Data, split: Split) -> tuple[Source, Tensor] | None:
    """The encoded images of a split, and the rows of them that are in it; None where there are none."""
    storage = data.storage(split) if isinstance(data, Labelled) else None
    source: Source | None = getattr(storage, "source", None)
    return None if storage is None or source is None else (source, storage.rows)


def _seen(source: Source, row: int, size: int, reading: Reading, traits: Traits) -> _Image | tuple[str, str]:
    try:
        image = opened_row(source, row)
        width, height = image.size
        pixels, its = examine(image, size, reading)
        values: NDArray[Any] = pixels
        if reading.bands is not None:  # whose range a run is told
            values = values_of(opened_row(source, row), reading.bands, reading.max_pixels)
    except BadImage as error:
        return source.where(row), f"{error}; {error.advice}"
    traits.add(its, source, row)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith(("I", "F")):
        low, high = map(float, image.getextrema())  # type: ignore[arg-type]
    return _Image(image.format or "no file", _kind(image), width, height, low, high, pixels)


def _kind(image: Image.Image) -> str:
    if isinstance(image, Raster):
        return image.bands
    depth = "16 bit" if image.mode.startswith("I;16") else DEPTHS.get(image.mode, "8 bit")
    bands = 3 if image.mode == "P" else len(image.getbands())
    palette = " (palette)" if image.mode == "P" else ""
    return f"{bands} x {depth}{palette}"


def _decoded(data: Data, split: Split, positions: Sequence[int]) -> Iterator[tuple[int, _Image]]:
    """Of data that are no encoded images."""
    if not positions:
        return
    if isinstance(data, Labelled):
        chosen = torch.tensor(positions, dtype=torch.int64)
        batches: Iterator[tuple[Tensor, Tensor]] = data.read(split, chosen.split(CHUNK))
    else:
        batches = (data.bank if split == "train" else data.test)(CHUNK)
    every = iter(chain.from_iterable(images.cpu().numpy() for images, _ in batches))
    wanted = set(positions)
    numbers = positions if isinstance(data, Labelled) else range(max(positions) + 1)
    for position, pixels in zip(numbers, every, strict=False):
        if position in wanted:
            channels, height, width = pixels.shape
            low, high = float(pixels.min()), float(pixels.max())
            yield position, _Image("no file", f"{channels} x 8 bit", width, height, low, high, pixels)


def _duplicates(data: Data, splits: dict[Split, SplitSurvey]) -> Duplicates:
    digests = {split: np.array(its.digests, np.uint64) for split, its in splits.items()}
    both = np.concatenate([digests[split] for split in SPLITS])
    _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
    same_as = first[inverse]  # the first image with this digest, training images before test images
    copies = np.flatnonzero(same_as != np.arange(len(both)))
    trained = len(digests["train"])
    across = copies[(copies >= trained) & (same_as[copies] < trained)]
    within = {
        "train": int((copies < trained).sum()),
        "test": len(digests["test"]) - len(np.unique(digests["test"])),
    }
    examples = (across if len(across) else copies)[:EXAMPLES]
    named = [(_name(data, splits, int(i)), _name(data, splits, int(same_as[i]))) for i in examples]
    labels = _labels(data, splits)
    other = 0 if labels is None else int((labels[copies] != labels[same_as[copies]]).sum())
    return Duplicates(within["train"], within["test"], len(across), other, named)


def _labels(data: Data, splits: dict[Split, SplitSurvey]) -> NDArray[Any] | None:
    """Labels of the images that were looked at, training images first."""
    if not isinstance(data, Labelled) or not data.labelled:
        return None
    return np.concatenate(
        [data.labels(split).numpy()[np.array(its.rows, int)] for split, its in splits.items()]
    )


def _name(data: Data, splits: dict[Split, SplitSurvey], index: int) -> str:
    """What an image is called, of training images followed by test images."""
    trained = len(splits["train"].rows)
    split: Split = "train" if index < trained else "test"
    position = splits[split].rows[index - (0 if split == "train" else trained)]
    found = _source(data, split)
    return f"{split}: {f'image {position}' if found is None else found[0].name(int(found[1][position]))}"
