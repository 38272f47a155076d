"""Decode a data set once, into a folder that `data: {name: packed}` reads."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._pack_format import SPLITS, Manifest, Shard, checksum, replacing
from dino_lab.components.data._storage import Split
from dino_lab.errors import UserError
from dino_lab.protocols import MayGiveWhole, ability

SHARD_BYTES = 2**29  # every shard is an open file of whoever reads them: ImageNet at 256 pixels is 500
BATCH = 64
LOCK = "lock"


def pack(
    data: Labelled, source: dict[str, Any], folder: Path, progress: Callable[[int, int], None]
) -> tuple[Manifest, int]:
    """Write what is missing or damaged in `folder`; what it holds now, and how many images were written.

    `progress` is told, after each batch, how many images of those that were missing are done. A UserError if
    the folder holds something else, or the data are to be given whole.
    """
    if (giving := ability(data, MayGiveWhole)) is not None and giving.whole:
        raise UserError("a pack holds squares; data.crops: full reads the files themselves")
    planned = _plan(data, source)
    there = Manifest.read(folder)
    if there is None and folder.is_dir() and any(item.name != LOCK for item in folder.iterdir()):
        raise UserError(f"{folder}: is not empty, and no pack")
    if there is not None and replace(there, finished=False, found=planned.found) != planned:
        raise UserError(f"{folder}: is a pack of other data ({_difference(there, planned)} differs)")
    with locked(folder):
        if there is None:
            planned.write(folder)
        return replace(planned, finished=True), _complete(data, folder, planned, progress)


def _complete(data: Labelled, folder: Path, planned: Manifest, progress: Callable[[int, int], None]) -> int:
    """Write what is missing or damaged; how many images that were."""
    for part in folder.glob(".*.npy"):  # of a process that was killed
        part.unlink()
    for split in SPLITS:
        with replacing(folder / f"{split}.labels.npy") as part, part.open("wb") as file:
            np.save(file, data.labels(split).numpy())
    missing = {split: _missing(folder, split, planned) for split in SPLITS}
    total = sum(len(images) for shards in missing.values() for _, images in shards)
    done = 0
    for split, shards in missing.items():
        for finished in _write(data, split, shards):
            done += finished
            progress(done, total)
    replace(planned, finished=True).write(folder)
    return total


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it; the lock goes with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no child that decodes inherits it
        except BlockingIOError:
            raise UserError(f"{folder}: another process is packing into it") from None
        yield


def _plan(data: Labelled, source: dict[str, Any]) -> Manifest:
    image = data.channels * data.size**2
    return Manifest(
        size=data.size,
        channels=data.channels,
        images={split: len(data.labels(split)) for split in SPLITS},
        shard_images=max(1, SHARD_BYTES // image),
        labels={split: checksum(data.labels(split).numpy()) for split in SPLITS},
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
        source=source,
        finished=False,
        labelled=data.labelled,
        found=(*(f"passed over: {its}" for its in data.passed_over), *data.notes),
    )


def _difference(a: Manifest, b: Manifest) -> str:
    ours, theirs = asdict(a), asdict(b)
    return ", ".join(key for key in ours if key not in ("finished", "found") and ours[key] != theirs[key])


def _missing(folder: Path, split: Split, manifest: Manifest) -> list[tuple[Shard, range]]:
    shards = [(Shard(folder, split, i, manifest), images) for i, images in enumerate(manifest.shards(split))]
    return [(shard, images) for shard, images in shards if not shard.is_whole()]


def _write(data: Labelled, split: Split, shards: list[tuple[Shard, range]]) -> Iterator[int]:
    """Fill the shards; the number of images after each batch."""
    rows: list[list[Tensor]] = [
        list(torch.arange(images.start, images.stop).split(BATCH)) for _, images in shards
    ]
    # One reader for all of them, so that its workers go on decoding while a shard is written.
    batches = data.read(split, (batch for batches in rows for batch in batches))
    for (shard, _), some in zip(shards, rows, strict=True):
        with shard.writing() as pixels:
            first = 0
            for images, _ in islice(batches, len(some)):
                pixels[first : first + len(images)] = images.numpy()
                first += len(images)
                yield len(images)
