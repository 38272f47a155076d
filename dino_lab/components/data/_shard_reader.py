"""Images of shards: read where they lie, or from copies that are made a window ahead."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from dino_lab.components.data import _shard_files
from dino_lab.components.data._shard_cache import ShardCache
from dino_lab.components.data._shard_files import BadShard, is_remote
from dino_lab.components.data._shard_index import Wanted, name_of
from dino_lab.components.data._shard_order import ShardOrder
from dino_lab.components.data._shard_rows import map_group, read_group, write_group
from dino_lab.components.data._shard_samples import CHUNK
from dino_lab.components.data._shard_set import ADVICE, File, Place, ShardSet, loaded
from dino_lab.components.data._storage import OnBadImage, batch_of, decoded
from dino_lab.components.data._tar import BLOCK
from dino_lab.errors import UserError, printable
from dino_lab.imaging.decode import (
    PLAIN,
    BadImage,
    Extent,
    Pixels,
    Reading,
    Trait,
    examine,
    opened,
)
from dino_lab.imaging.files import shown
from dino_lab.types import Images

AT_ONCE = 4  # copies that are made at once
LINES = 10  # about images that are left out; then at every tenfold number
logger = logging.getLogger("dino_lab")


class ShardSource:
    """Encoded images with labels, by their positions in a split; travels to the processes that decode."""

    def __init__(
        self, shards: ShardSet, wanted: Wanted, classes: dict[str, int], cache: ShardCache, window: int
    ) -> None:
        """`classes` numbers the labels; row groups of one window are held in memory."""
        self.shards, self.wanted, self.classes, self.cache = shards, wanted, classes, cache
        self.groups = _Groups(window + 1)

    @property
    def labels(self) -> Tensor:
        """Labels int64 [N], read from the indexes now; zeros that take no memory where there are none."""
        if self.wanted.label is None:
            return torch.zeros(1, dtype=torch.int64).expand(len(self.shards))
        parts = [
            np.array([self.classes[label] for label in labels], np.int64)[codes]
            for labels, codes in self.shards.codes()
        ]
        return torch.from_numpy(np.concatenate(parts))

    def label(self, position: int) -> int:
        """The label of an image."""
        if self.wanted.label is None:
            return 0
        place = self.shards.place(position)
        header, arrays = loaded(place.file)
        return self.classes[header.labels[arrays.labels[place.row]]]

    def content(self, position: int) -> bytes:
        """An encoded image; a BadShard where the shard is not what its index says."""
        place = self.shards.place(position)
        arrays = loaded(place.file)[1]
        if len(arrays.starts):
            return self._bytes(place.file, int(arrays.starts[place.row]), int(arrays.lengths[place.row]))
        column = self.groups.get(place, self._read_group)
        if len(column) != self.shards.rows_of[self.shards.shard_of(position)]:
            raise BadShard("has other row groups than its index says")
        content: bytes | None = column[place.row_of_group].as_py()
        if content is None:
            raise BadImage("the row holds no bytes")
        return content

    def open(self, position: int) -> Image.Image:
        return opened(self.content(position))

    def examined(self, position: int, extent: Extent, reading: Reading) -> tuple[Pixels, dict[Trait, float]]:
        """What `examine` makes of an image; a BadImage, or a UserError where the shard is at fault."""
        try:
            return examine(self.open(position), extent, reading)
        except BadShard as error:
            address = self.shards.place(position).file.address
            raise UserError(f"{shown(address)}: unreadable shard ({error}); {ADVICE}") from error

    def complaint(self, position: int, error: BadImage) -> str:
        """What is wrong with an image, and where it is."""
        return f"{self.where(position)}: unreadable image ({error})"

    def where(self, position: int) -> str:
        return f"{shown(self.shards.place(position).file.address)}: {self._inside(position)}"

    def name(self, position: int) -> str:
        return f"{name_of(self.shards.place(position).file.address)}/{self._inside(position)}"

    def copy(self, file: File, group: int) -> Path:
        """Where the copy of a remote shard is or would be: of a tar file, or of a row group's images."""
        part = f"group {group} of {self.wanted.image}" if file.header.heaviest else ""
        return self.cache.path(file.address, file.header.stamp, part)

    def _read_group(self, file: File, group: int) -> Any:
        """The images of a row group, as large_binary."""
        if is_remote(file.address) and (copy := map_group(self.copy(file, group))) is not None:
            return copy
        return read_group(file.address, file.header.size, group, self.wanted)

    def _inside(self, position: int) -> str:
        place = self.shards.place(position)
        starts = loaded(place.file)[1].starts
        if not len(starts):
            return f"row {place.row}"
        try:
            header = self._bytes(place.file, int(starts[place.row]) - BLOCK, 100)
        except (BadShard, UserError):
            return f"byte {starts[place.row]}"
        return printable(header.split(b"\0")[0].decode("utf-8", "surrogateescape"), 100)

    def _bytes(self, file: File, start: int, length: int) -> bytes:
        if is_remote(file.address):
            try:
                return _shard_files.read(str(self.copy(file, 0)), start, length)
            except BadShard:  # there is no copy, or not any more
                pass
        return _shard_files.read(file.address, start, length)


class _Groups:
    """The row groups that were read last."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.read: OrderedDict[tuple[str, int], Any] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, place: Place, read: Callable[[File, int], Any]) -> Any:
        """What `read` gives of a file and a row group."""
        key = place.file.address, place.group
        with self.lock:
            if key not in self.read:
                self.read[key] = read(place.file, place.group)
                while len(self.read) > self.most:
                    self.read.popitem(last=False)
            self.read.move_to_end(key)
            return self.read[key]

    def __getstate__(self) -> int:
        return self.most

    def __setstate__(self, most: int) -> None:
        self.__init__(most)  # type: ignore[misc]


class ShardStorage:
    """The images of a split, decoded by worker processes when their turn comes."""

    skipped = 0

    def __init__(
        self,
        source: ShardSource,
        extent: Extent,
        device: torch.device,
        on_bad_image: OnBadImage,
        reading: Reading = PLAIN,
    ) -> None:
        self.source, self.device = source, device
        self._decoder = _Decoder(source, extent, reading, on_bad_image)

    @property
    def labels(self) -> Tensor:
        """Labels int64 [N], on the CPU."""
        return self.source.labels

    @property
    def rows(self) -> Tensor:
        """Positions int64 [N] in the source: all of them."""
        return torch.arange(len(self.source.shards))

    def batches(self, rows: Iterable[Tensor]) -> Iterator[tuple[Any, Tensor]]:
        """Images uint8 [B, C, size, size] and labels int64 [B], on the device, for each int64 [B] of `rows`.

        Images are of many sizes where they are given whole. Where an image cannot be read, a UserError; or
        with `on_bad_image: skip` the next one of its shard takes its place, and a line names it.
        """
        told = 0
        for images, labels, message, left_out in decoded(self._decoder, rows, self.device):
            if message:
                raise UserError(message)
            for complaint in left_out:
                told += 1
                if told <= LINES or str(told).strip("0") == "1":
                    logger.warning("left out, %d so far, the next image in its place: %s", told, complaint)
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def in_order(self, batch_size: int) -> Iterator[tuple[Any, Tensor]]:
        """All images once; the last batch may be smaller."""
        with self._copies() as copies:
            yield from self.batches(self._in_order(batch_size, copies))

    def _in_order(self, batch_size: int, copies: _Copies) -> Iterator[Tensor]:
        images, before = len(self.source.shards), -1
        for first in range(0, images, batch_size):
            shard = self.source.shards.shard_of(first)
            if shard != before:
                copies.want([shard], range(shard + 1, min(shard + AT_ONCE, len(self.source.shards.counts))))
                before = shard
            yield torch.arange(first, min(first + batch_size, images))

    def shuffled(
        self, order: ShardOrder, batch_size: int, start: int, images: slice
    ) -> Iterator[tuple[Any, Tensor]]:
        """Some images of each batch from step `start` on, without end."""
        with self._copies() as copies:
            yield from self.batches(self._shuffled(order, batch_size, start, images, copies))

    def _shuffled(
        self, order: ShardOrder, batch_size: int, start: int, images: slice, copies: _Copies
    ) -> Iterator[Tensor]:
        steps, before = order.images // batch_size, (-1, -1)
        first, last, _ = images.indices(batch_size)
        margin = batch_size**-0.5  # by which the shares of shards in a batch differ
        share = max(0.0, first / batch_size - margin), min(1.0, last / batch_size + margin)
        for step in itertools.count(start):
            epoch, step_of_epoch = divmod(step, steps)
            place = step_of_epoch * batch_size
            now = epoch, order.window_of(epoch, place)
            if now != before:
                after = (epoch, now[1] + 1) if now[1] + 1 < order.windows() else (epoch + 1, 0)
                copies.want(order.shards(*now, share), order.shards(*after, share))
                before = now
            yield torch.from_numpy(order.positions(epoch, place, batch_size)[images])

    @contextmanager
    def _copies(self) -> Iterator[_Copies]:
        copies = _Copies(self.source)
        try:
            yield copies
        finally:
            copies.close()


class _Copies:
    """Threads that copy remote shards before their images are read."""

    def __init__(self, source: ShardSource) -> None:
        self.source = source
        self._over = threading.Event()
        self._pool: ThreadPoolExecutor | None = None  # its threads begin after the decoders, which are forked
        self._waiting: list[Future[None]] = []

    def want(self, now: Iterable[int], then: Iterable[int]) -> None:
        """Copy these shards, and what fits beside them of those that come then."""
        shards, later = self._remote(now), self._remote(then)
        for future in self._waiting:
            future.cancel()
        if not shards and not later:
            return
        self._pool = self._pool or ThreadPoolExecutor(AT_ONCE)
        needed = [self.source.copy(*shard) for shard in shards]
        for copy in needed:
            self.source.cache.use(copy)
        self._waiting = [self._pool.submit(self._copy, *shard, needed) for shard in shards]
        needed = needed + [self.source.copy(*shard) for shard in later]
        self._waiting += [self._pool.submit(self._copy, *shard, needed) for shard in later]

    def close(self) -> None:
        """Copy no more."""
        self._over.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _remote(self, shards: Iterable[int]) -> list[tuple[File, int]]:
        its = self.source.shards
        found = ((its.files[its.file_of[shard]], int(its.group_of[shard])) for shard in shards)
        return [(file, group) for file, group in found if is_remote(file.address)]

    def _copy(self, file: File, group: int, needed: Sequence[Path]) -> None:
        copy = self.source.copy(file, group)
        if self.source.cache.use(copy):
            return

        def write(into: BinaryIO) -> None:
            if file.header.heaviest:
                write_group(read_group(file.address, file.header.size, group, self.source.wanted), into)
                return
            for first in range(0, file.header.size, CHUNK):
                if self._over.is_set():
                    raise _Over
                into.write(_shard_files.read(file.address, first, min(CHUNK, file.header.size - first)))

        try:
            self.source.cache.fill(copy, file.header.heaviest or file.header.size, write, needed)
        except (_Over, UserError, BadShard):
            return  # whoever reads the images says why they cannot be read


class _Over(Exception):
    """No copies are wanted any more."""


class _Decoder(Dataset[tuple[Images, Tensor, str, list[str]]]):
    """A batch for a list of positions; what went wrong, as exceptions lose their line; what was left out."""

    def __init__(
        self, source: ShardSource, extent: Extent, reading: Reading, on_bad_image: OnBadImage
    ) -> None:
        self.source, self.extent, self.reading, self.on_bad_image = source, extent, reading, on_bad_image

    def __getitem__(self, index: Sequence[int]) -> tuple[Images, Tensor, str, list[str]]:
        left_out = list[str]()
        try:
            read = [self._read(position, left_out) for position in index]
        except UserError as error:
            return torch.empty(0), torch.empty(0), str(error), []
        return (
            batch_of([pixels for pixels, _ in read], self.extent),
            torch.tensor([label for _, label in read]),
            "",
            left_out,
        )

    def _read(self, position: int, left_out: list[str]) -> tuple[Any, int]:
        """The pixels and the label of an image, or of the next one of its shard that can be read."""
        shards = self.source.shards
        shard = shards.shard_of(position)
        first, count = int(shards.starts[shard]), int(shards.counts[shard])
        for further in range(count):
            at = first + (position - first + further) % count
            try:
                return self.source.examined(at, self.extent, self.reading)[0], self.source.label(at)
            except BadImage as error:
                complaint = self.source.complaint(at, error)
                if self.on_bad_image == "error":
                    raise UserError(f"{complaint}; {error.advice}, or set data.on_bad_image: skip") from error
                left_out.append(complaint)
        raise UserError(f"{shown(shards.place(position).file.address)}: no image of it can be read; {ADVICE}")
