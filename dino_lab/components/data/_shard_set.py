"""The shards of a split: their indexes, made where there are none, and which images belong to the split."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from dino_lab import collectives
from dino_lab.components.data import _shard_files
from dino_lab.components.data._shard_files import BadShard, Info, is_remote
from dino_lab.components.data._shard_index import (
    INDEXES,
    Arrays,
    Header,
    Wanted,
    name_of,
    places,
    read_arrays,
    read_header,
    whole,
    write_index,
)
from dino_lab.components.data._shard_rows import index_rows
from dino_lab.components.data._shard_samples import index_tar
from dino_lab.components.data._storage import workers
from dino_lab.errors import UserError
from dino_lab.imaging.files import shown
from dino_lab.imaging.report import EXAMPLES, PassedOver

OnBadShard = Literal["error", "skip"]
ALL = 1 << 32  # of an image's number: all are below
KEPT = 64  # indexes that are held in memory
AT_ONCE = 16  # remote files that are looked at at once
EVERY = 10.0  # seconds between two lines
ADVICE = "repair or remove it, or set data.on_bad_shard: skip"
logger = logging.getLogger("dino_lab")


@dataclass(frozen=True)
class File:
    """A file of shards, with its index."""

    address: str
    index_file: Path
    header: Header = field(hash=False)


def make_index(address: str, wanted: Wanted, folder: Path) -> File:
    """A shard with its index, made where there is none; a BadShard where that cannot be done."""
    its, candidates = _shard_files.info(address), places(address, wanted, folder)
    if found := _there(address, candidates, its):
        return found
    file = next((file for file in candidates if os.access(file.parent, os.W_OK)), candidates[-1])
    with _alone(file, folder):
        if found := _there(address, candidates, its):  # another process has made it meanwhile
            return found
        header, arrays = _beside_url(address, wanted, its) or _read_once(address, wanted, its)
        try:
            write_index(file, header, arrays)
        except OSError as error:
            raise UserError(f"{shown(file)}: cannot be written ({error.strerror})") from error
    return File(address, file, header)


def index_all(
    addresses: Sequence[str], wanted: Wanted, on_bad_shard: OnBadShard, folder: Path
) -> tuple[list[File], set[str], PassedOver | None]:
    """All shards, the labels in them, and those that are damaged; of which a UserError tells, or a line.

    Processes begin at different places, so that they make the indexes together.
    """
    first = collectives.rank() * len(addresses) // collectives.processes()
    found: dict[str, File | BadShard] = {}
    labels: set[str] = set()
    said = time.monotonic()
    threads = AT_ONCE if any(map(is_remote, addresses)) else workers()
    with ThreadPoolExecutor(threads) as pool:
        asked = [*addresses[first:], *addresses[:first]]
        for address, its in zip(asked, pool.map(lambda url: _made(url, wanted, folder), asked), strict=True):
            if isinstance(its, BadShard) and on_bad_shard == "error":
                pool.shutdown(wait=False, cancel_futures=True)
                raise UserError(f"{_complaint(address, its)}; {ADVICE}")
            if isinstance(its, File):
                labels.update(its.header.labels)
                its = replace(its, header=replace(its.header, labels=()))  # which 10^5 shards have alike
            found[address] = its
            if time.monotonic() - said >= EVERY:
                logger.warning("shards are looked at: %d of %d", len(found), len(addresses))
                said = time.monotonic()
    bad = {address: its for address in addresses if isinstance(its := found[address], BadShard)}
    files = [its for address in addresses if isinstance(its := found[address], File)]
    if not bad:
        return files, labels, None
    complaint = _complaint(*next(iter(bad.items())))
    if not files:
        raise UserError(f"none of {len(addresses)} shards can be read; the first: {complaint}")
    logger.warning("left out %d of %d shards; the first: %s", len(bad), len(addresses), complaint)
    examples = tuple(_complaint(*its) for its in list(bad.items())[:EXAMPLES])
    return files, labels, PassedOver("damaged shard, left out", len(bad), examples)


def _made(address: str, wanted: Wanted, folder: Path) -> File | BadShard:
    try:
        return make_index(address, wanted, folder)
    except BadShard as error:
        return error


def _complaint(address: str, error: BadShard) -> str:
    return f"{shown(address)}: unreadable shard ({error})"


def _read_once(address: str, wanted: Wanted, its: Info) -> tuple[Header, Arrays]:
    if not its.size:
        raise BadShard("it is empty")
    is_parquet = (urlsplit(address).path if is_remote(address) else address).lower().endswith(".parquet")
    return (index_rows if is_parquet else index_tar)(address, wanted, its)


def _there(address: str, candidates: list[Path], its: Info) -> File | None:
    for file in candidates:
        header = read_header(file)
        if header is not None and (header.size, header.stamp) == its:
            return File(address, file, header)
    return None


def _beside_url(address: str, wanted: Wanted, its: Info) -> tuple[Header, Arrays] | None:
    """The index that lies beside a remote shard, if one does; dates change when files are uploaded."""
    if not is_remote(address) or "?" in address:
        return None
    url = address.rpartition("/")[0] + "/" + places("/" + name_of(address), wanted, Path())[0].name
    try:
        header, arrays = whole(_shard_files.read(url, 0, _shard_files.info(url).size))
    except (BadShard, UserError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return (replace(header, stamp=its.stamp), arrays) if header.size == its.size else None


@contextmanager
def _alone(file: Path, folder: Path) -> Iterator[None]:
    """Hold a lock in the cache, for which other processes that make the same index wait."""
    if file.parent != folder / INDEXES:  # beside a local shard, whose index is made soon
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(file.name + ".lock").open("w") as its:
        fcntl.lockf(its, fcntl.LOCK_EX)
        yield


@lru_cache(KEPT)
def loaded(file: File) -> tuple[Header, Arrays]:
    """The index of a shard; the last ones are held in memory. A UserError where it has changed."""
    try:
        header, arrays = read_arrays(file.index_file)
    except BadShard as error:
        raise UserError(f"{shown(file.address)}: {error}") from error
    if (header.size, header.stamp) != (file.header.size, file.header.stamp):
        raise UserError(f"{shown(file.address)}: has changed since it was looked at; start again")
    return header, arrays


@lru_cache(KEPT)
def _chosen(file: File, first: int, count: int, low: int, high: int) -> NDArray[np.int64]:
    """Which rows of an index, from `first` on, have a number from `low` to below `high`."""
    numbers = loaded(file)[1].numbers[first : first + count]
    return first + np.flatnonzero((numbers >= low) & (numbers < high))


class Place(NamedTuple):
    """Where an image is: the file, its row group, and its row in the file and in the group."""

    file: File
    group: int
    row: int
    row_of_group: int


class ShardSet:
    """The images of a split: those of its shards whose number lies from `low` to below `high`.

    A shard is a tar file or a row group of a Parquet file. Positions count through all of them.
    """

    def __init__(self, files: Sequence[File], low: int = 0, high: int = ALL) -> None:
        self.files, self.low, self.high = list(files), low, high
        groups = [its.header.groups for its in files]
        self.file_of = np.repeat(np.arange(len(files)), [len(its) for its in groups])  # [S]
        self.group_of = np.concatenate([np.arange(len(its)) for its in groups])  # [S]
        self.first_of = np.concatenate([np.cumsum((0, *its[:-1])) for its in groups])  # [S], rows of the file
        self.rows_of = np.concatenate([np.array(its, np.int64) for its in groups])  # [S]
        self.counts = self.rows_of
        if (low, high) != (0, ALL):
            self.counts = np.array([len(self._rows(shard)) for shard in range(len(self.rows_of))], np.int64)
        self.starts = np.concatenate(([0], np.cumsum(self.counts)))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shard_of(self, position: int) -> int:
        """The shard of an image."""
        return int(np.searchsorted(self.starts, position, side="right")) - 1

    def place(self, position: int) -> Place:
        """Where an image is."""
        shard = self.shard_of(position)
        row = position - int(self.starts[shard])
        first = int(self.first_of[shard])
        if self.counts is not self.rows_of:
            row = int(self._rows(shard)[row]) - first
        return Place(self.files[self.file_of[shard]], int(self.group_of[shard]), first + row, row)

    def codes(self) -> Iterator[tuple[tuple[str, ...], NDArray[np.int32]]]:
        """Of each shard its distinct labels, and for each of its images which of them it has."""
        for shard in range(len(self.counts)):
            header, arrays = loaded(self.files[self.file_of[shard]])
            yield header.labels, arrays.labels[self._rows(shard)]

    def numbers(self) -> NDArray[np.uint32]:
        """The numbers of all images."""
        return np.concatenate(
            [loaded(self.files[self.file_of[s]])[1].numbers[self._rows(s)] for s in range(len(self.counts))]
        )

    def _rows(self, shard: int) -> Any:
        first, count = int(self.first_of[shard]), int(self.rows_of[shard])
        if (self.low, self.high) == (0, ALL):
            return slice(first, first + count)
        return _chosen(self.files[self.file_of[shard]], first, count, self.low, self.high)
