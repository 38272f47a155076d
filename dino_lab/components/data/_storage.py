"""Where the images of one split lie, and its batches: resident on the device, or decoded in the background.

Resident is chosen where the decoded split takes at most `RESIDENT_SHARE` of the memory that is free on the
host and, for CUDA, on the device. Both storages give the same batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_lab import collectives
from dino_lab.components.data._decoders import Item, watched
from dino_lab.components.data._traits import Traits
from dino_lab.distributed.world import cores
from dino_lab.errors import UserError
from dino_lab.imaging.decode import PLAIN, BadImage, Extent, Pixels, Reading, Whole, decode, examine
from dino_lab.types import Images, WholeImages

RESIDENT_SHARE = 0.4
SAMPLE = 256  # images, evenly spread, that are looked at where all of them need not be decoded
MOST_WORKERS = 16
Batch = tuple[Tensor, Tensor]
Split = Literal["train", "test"]
OnBadImage = Literal["error", "skip"]
_RESIDENT: ContextVar[bool] = ContextVar("resident", default=True)
_LISTED: ContextVar[bool] = ContextVar("listed", default=False)
logger = logging.getLogger("dino_lab")


class Source(Protocol):
    """Encoded images with labels; must survive pickling, for it travels to worker processes."""

    labels: Tensor  # [N] int64

    def open(self, index: int) -> Image.Image: ...
    def where(self, index: int) -> str: ...
    def name(self, index: int) -> str:
        """What it is called, wherever the data lies."""
        ...


class Storage(Protocol):
    """The decoded images of one split."""

    labels: Tensor  # [N] int64
    rows: Tensor  # [N] int64, on the CPU: where the images are in the source
    skipped: int  # unreadable images that were left out

    def batches(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Images uint8 [B, C, H, W] and labels int64 [B], on the device, for each int64 [B] of `rows`."""
        ...


class TrainingStorage(Protocol):
    """Images of the training split as training sees them, which may be of many sizes."""

    labels: Tensor  # [N] int64
    rows: Tensor  # [N] int64, on the CPU: where the images are in the source
    skipped: int  # unreadable images that were left out

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Images, Tensor]]:
        """Images and labels int64 [B], on the device, for each int64 [B] of `rows`."""
        ...


class Resident:
    """All images in one tensor, on the device or, where they do not fit there, in main memory."""

    def __init__(
        self,
        images: Any,
        labels: Tensor,
        skipped: int = 0,
        rows: Tensor | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.images: Any = images  # `Images`, given as they are
        self.labels, self.skipped = labels, skipped
        self.rows = torch.arange(len(labels)) if rows is None else rows
        self.device = device or images.device

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        for index in rows:
            there = index.to(self.images.device, non_blocking=True)
            if isinstance(self.images, WholeImages):
                batch: tuple[Images, Tensor] = self.images[index], self.labels.index_select(0, there)
            else:
                batch = self.images.index_select(0, there), self.labels.index_select(0, there)
            if self.device.type == "cuda" and self.images.device.type == "cpu":
                batch = batch[0].pin_memory(), batch[1].pin_memory()  # or the copy would be waited for
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def to(self, device: torch.device) -> Resident:
        """The same images for another device; without a copy if they lie there."""
        if device == self.images.device or not fits(self.images.nbytes, device):
            return Resident(self.images, self.labels, self.skipped, self.rows, device)
        return Resident(self.images.to(device), self.labels.to(device), self.skipped, self.rows)


def decoded(decoder: Dataset[Item], rows: Iterable[Tensor], device: torch.device) -> Iterator[Item]:
    """What a decoder gives for each list of positions, made in worker processes; see `watched`."""
    loader: DataLoader[Item] = DataLoader(
        decoder,
        sampler=(index.tolist() for index in rows),
        batch_size=None,
        num_workers=workers(),
        pin_memory=device.type == "cuda",
        # Without its own generator the loader would draw from the global one, and change the run.
        generator=torch.Generator(),
    )
    return watched(loader)


class Streamed:
    """Images that worker processes decode when their turn comes."""

    def __init__(
        self,
        source: Source,
        rows: Tensor,
        extent: Extent,
        device: torch.device,
        skipped: int,
        reading: Reading = PLAIN,
    ) -> None:
        self.labels, self.rows, self.skipped, self.device = source.labels[rows], rows, skipped, device
        self.source = source
        self._decoder = _Decoder(source, rows.tolist(), extent, reading)

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        for images, labels, message in decoded(self._decoder, rows, self.device):
            if message:
                raise UserError(message)
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class _Decoder(Dataset[tuple[Images, Tensor, str]]):
    """One batch for a list of positions, and what went wrong: an exception would lose its one line."""

    def __init__(self, source: Source, rows: list[int], extent: Extent, reading: Reading) -> None:
        self.source, self.rows, self.extent, self.reading = source, rows, extent, reading

    def __getitem__(self, index: Sequence[int]) -> tuple[Images, Tensor, str]:
        rows = [self.rows[i] for i in index]
        images = []
        for row in rows:
            try:
                images.append(decode(opened_row(self.source, row), self.extent, self.reading))
            except BadImage as error:
                return torch.empty(0), self.source.labels[rows], _complaint(self.source, row, error)
        return batch_of(images, self.extent), self.source.labels[rows], ""


def batch_of(images: Sequence[Pixels], extent: Extent) -> Images:
    """Decoded images as one batch: of many sizes where they are whole."""
    tensors = [torch.from_numpy(image) for image in images]
    return WholeImages.of(tensors) if isinstance(extent, Whole) else torch.stack(tensors)


def load(
    source: Source,
    rows: Tensor,
    size: int,
    device: torch.device,
    on_bad_image: OnBadImage,
    reading: Reading = PLAIN,
) -> tuple[Storage, Traits]:
    """The images `rows` of `source`, resident if they fit, and what may have been meant otherwise in them.

    A UserError names the first unreadable one. Of images that are not decoded now a sample is looked at.
    """
    if _LISTED.get():
        return Streamed(source, rows, size, device, 0, reading), Traits()
    if not fits(len(rows) * reading.channels * size * size, device):
        # Decided once, before training, so that every epoch has the same images.
        whole = on_bad_image == "skip"
        if whole:
            bad, traits = _decode_all(source, rows, size, reading, None)
            kept = _without(source, rows, bad, on_bad_image)
        else:
            bad, traits = {}, _look_at_some(source, rows, size, reading)
            kept = rows
        return Streamed(source, kept, size, device, len(bad), reading), traits
    images = np.empty((len(rows), reading.channels, size, size), np.uint8)
    bad, traits = _decode_all(source, rows, size, reading, images)
    kept = _without(source, rows, bad, on_bad_image)
    pixels = torch.from_numpy(images)
    if bad:
        pixels = pixels[[i for i in range(len(rows)) if i not in bad]]
    return Resident(pixels.to(device), source.labels[kept].to(device), len(bad), kept), traits


def load_whole(
    source: Source, rows: Tensor, whole: Whole, device: torch.device, reading: Reading
) -> TrainingStorage:
    """The images `rows` of `source`, each at its own height and width, resident if they fit.

    A UserError names the first unreadable one.
    """
    if not _RESIDENT.get() or not fits(reading.channels * _estimated_pixels(source, rows, whole), device):
        return Streamed(source, rows, whole, device, 0, reading)
    images: list[Pixels] = [np.empty(0, np.uint8)] * len(rows)
    bad, _ = _decode_all(source, rows, whole, reading, images)
    _without(source, rows, bad, "error")
    return Resident(batch_of(images, whole).to(device), source.labels[rows].to(device), rows=rows)


def _estimated_pixels(source: Source, rows: Tensor, whole: Whole) -> int:
    """Pixels of the decoded images, by the sizes that the files of a sample state."""
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    sides = [whole.size(*opened_row(source, row).size) for row in sample.tolist()]
    return int(np.prod(sides, axis=1).mean() * len(rows))


def _look_at_some(source: Source, rows: Tensor, size: int, reading: Reading) -> Traits:
    """What may have been meant otherwise in a sample; in all, where the range of grey values is not known.

    A UserError names the first unreadable one of them.
    """
    step = max(1, len(rows) // SAMPLE)
    bad, traits = _decode_all(source, rows[::step], size, reading, None)
    _without(source, rows[::step], bad, "error")
    if step > 1 and reading.white is None and "grey" in traits:
        logger.warning(
            "%d images are read once to find the range of their grey values; data.white would say it",
            len(rows),
        )
        bad, traits = _decode_all(source, rows, size, reading, None)
        _without(source, rows, bad, "error")
    return traits


def _decode_all(
    source: Source,
    rows: Tensor,
    extent: Extent,
    reading: Reading,
    into: Pixels | MutableSequence[Pixels] | None,
) -> tuple[dict[int, BadImage], Traits]:
    """Decode every image in a thread pool (Pillow lets other threads run); the failures by position."""

    def part(positions: range) -> tuple[dict[int, BadImage], Traits]:
        bad, traits = {}, Traits()
        for i in positions:
            try:
                pixels, its = examine(opened_row(source, int(rows[i])), extent, reading)
            except BadImage as error:
                bad[i] = error
            else:
                traits.add(its, source, int(rows[i]))
                if into is not None:
                    into[i] = pixels
        return bad, traits

    parts = [range(i, min(i + 256, len(rows))) for i in range(0, len(rows), 256)]
    failures: dict[int, BadImage] = {}
    found = Traits()
    with ThreadPoolExecutor(workers()) as pool:
        for bad, traits in pool.map(part, parts):
            failures |= bad
            found.merge(traits)
    return failures, found


def opened_row(source: Source, row: int) -> Image.Image:
    """The image of a row, not yet decoded; a BadImage says why there is none."""
    try:
        return source.open(row)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("there is no such file") from error
    except Exception as error:  # as many kinds as Pillow has plug-ins
        raise BadImage(getattr(error, "strerror", None) or " ".join(f"{error}".split())) from error


def _without(source: Source, rows: Tensor, bad: dict[int, BadImage], on_bad_image: OnBadImage) -> Tensor:
    if not bad:
        return rows
    first = min(bad)
    complaint = _complaint(source, int(rows[first]), bad[first])
    if on_bad_image == "error":
        raise UserError(
            f"{complaint}; {len(bad)} of {len(rows)} images cannot be read" if len(bad) > 1 else complaint
        )
    if len(bad) == len(rows):
        raise UserError(f"none of {len(rows)} images can be read; the first: {complaint}")
    logger.warning("left out %d of %d images, unreadable; the first: %s", len(bad), len(rows), complaint)
    return rows[[i for i in range(len(rows)) if i not in bad]]


def bad_image_error(source: Source, row: int, error: BadImage) -> UserError:
    """What a user is told of an image that cannot be read."""
    return UserError(_complaint(source, row, error))


def _complaint(source: Source, row: int, error: BadImage) -> str:
    hint = f"{error.advice}, or set data.on_bad_image: skip"
    return f"{source.where(row)}: unreadable image ({error}); {hint}"


def fits(size: int, device: torch.device) -> bool:
    """Whether so many bytes may stay on the device."""
    if not _RESIDENT.get():
        return False
    free = psutil.virtual_memory().available
    if device.type == "cuda":
        free = min(free, torch.cuda.mem_get_info(device)[0])
    return size <= RESIDENT_SHARE * free


@contextmanager
def never_resident() -> Iterator[None]:
    """Whatever is loaded inside is decoded when it is asked for."""
    before = _RESIDENT.set(False)
    try:
        yield
    finally:
        _RESIDENT.reset(before)


@contextmanager
def only_listed() -> Iterator[None]:
    """Of whatever is loaded inside no image is opened before it is asked for."""
    before = _LISTED.set(True)
    try:
        with never_resident():
            yield
    finally:
        _LISTED.reset(before)


def is_listing() -> bool:
    """Whether images are only listed now."""
    return _LISTED.get()


def workers() -> int:
    """How many threads or processes may decode for this process."""
    return max(1, min(cores(), MOST_WORKERS) // collectives.local_processes())
