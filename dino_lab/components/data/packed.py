"""Images that were decoded once and for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.data._labelled import Labelled, Limit, subset
from dino_lab.components.data._pack_format import AGAIN, MANIFEST, Manifest, Shard, checksum
from dino_lab.components.data._paths import named_path
from dino_lab.components.data._storage import Batch, Resident, Split, Storage, fits, workers
from dino_lab.errors import Misfit, UserError
from dino_lab.registry import register

AHEAD = 4  # batches that are copied before they are asked for


@register("data", "packed")
class Packed(Labelled):
    """A folder that `dino-lab pack` wrote: pixels of one size, read without decoding.

    Size, class names, mean and standard deviation are those of the data that was packed. What does not fit
    into memory is read where it lies; each image is compared with its checksum when it is first read.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder that `dino-lab pack` wrote")],
        limit: Limit = None,
    ) -> None:
        folder = named_path(path)
        manifest = Manifest.read(folder)
        if manifest is None:
            raise Misfit(("data", "path"), f"{path} has no {MANIFEST}; `dino-lab pack` makes such a folder")
        if not manifest.finished:
            raise Misfit(("data", "path"), f"{path} is not finished; the same `dino-lab pack` again goes on")
        self.labelled = manifest.labelled
        self.notes = tuple(f"when it was packed, {line}" for line in manifest.found)
        self.channels = manifest.channels
        train, test = _Split(folder, "train", manifest), _Split(folder, "test", manifest)
        super().__init__(
            _storage(train, subset(manifest.images["train"], limit), device),
            _storage(test, torch.arange(manifest.images["test"]), device),
            manifest.class_names,
            manifest.size,
            manifest.mean,
            manifest.std,
        )


class _Split:
    """The shards of a split."""

    def __init__(self, folder: Path, split: Split, manifest: Manifest) -> None:
        file = folder / f"{split}.labels.npy"
        try:
            labels = np.load(file)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file}: damaged or missing ({error}); {AGAIN}") from error
        if labels.shape != (manifest.images[split],) or checksum(labels) != manifest.labels[split]:
            raise UserError(f"{file}: damaged (does not have its checksum); {AGAIN}")
        self.labels = torch.from_numpy(labels)
        numbers = range(len(manifest.shards(split)))
        self.shards = [Shard(folder, split, number, manifest).open() for number in numbers]
        self.shard_images = manifest.shard_images
        self.shape = (manifest.channels, manifest.size, manifest.size)

    def images(self, rows: Tensor, pinned: bool = False) -> Tensor:
        """Images uint8 [N, C, H, W] of rows int64 [N]; a UserError if one is damaged."""
        images = torch.empty(len(rows), *self.shape, dtype=torch.uint8, pin_memory=pinned)
        for into, row in zip(images.numpy(), rows.tolist(), strict=True):
            shard, position = divmod(row, self.shard_images)
            self.shards[shard].copy(position, into)
        return images


class _Mapped:
    """Images that threads copy from the shards a few batches ahead."""

    skipped = 0

    def __init__(self, split: _Split, rows: Tensor, device: torch.device) -> None:
        self.split, self.rows, self.device = split, rows, device
        self.labels = split.labels[rows]

    def batches(self, rows: Iterable[Tensor]) -> Iterator[Batch]:
        ready: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(min(AHEAD, workers())) as pool:
            for index in rows:
                ready.append(pool.submit(self._copy, index))
                if len(ready) > AHEAD:
                    yield self._on_device(ready.popleft())
            while ready:
                yield self._on_device(ready.popleft())

    def _copy(self, index: Tensor) -> Batch:
        pinned = self.device.type == "cuda"
        labels = self.labels[index]
        return self.split.images(self.rows[index], pinned), labels.pin_memory() if pinned else labels

    def _on_device(self, batch: Future[Batch]) -> Batch:
        images, labels = batch.result()
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


def _storage(split: _Split, rows: Tensor, device: torch.device) -> Storage:
    if not fits(len(rows) * int(np.prod(split.shape)), device):
        return _Mapped(split, rows, device)
    return Resident(split.images(rows).to(device), split.labels[rows].to(device))
