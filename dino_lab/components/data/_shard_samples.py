"""Samples of a WebDataset tar file, members with a common stem that follow each other, and its index."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dino_lab.components.data import _shard_files
from dino_lab.components.data._shard_files import BadShard, Info, is_remote
from dino_lab.components.data._shard_index import Arrays, Header, Wanted, name_of, number_of
from dino_lab.components.data._tar import DamagedTar, Member, Tar
from dino_lab.errors import Misfit, printable
from dino_lab.imaging.files import SUFFIXES as IMAGE_SUFFIXES
from dino_lab.imaging.files import shown

CHUNK = 1 << 23  # bytes of a remote file that are asked for at once
JSON = "json:"
IMAGES = {suffix[1:] for suffix in IMAGE_SUFFIXES}


class Forwards:
    """A file that is read forwards, by large requests where it is remote."""

    def __init__(self, address: str, size: int) -> None:
        self.address, self.size, self.at = address, size, 0
        self._first, self._chunk = 0, b""  # where the chunk begins

    def read(self, length: int) -> bytes:
        """Up to so many bytes."""
        parts = []
        while length and self.at < self.size:
            if not self._first <= self.at < self._first + len(self._chunk):
                self._first = self.at
                self._chunk = _shard_files.read(self.address, self.at, min(CHUNK, self.size - self.at))
            part = self._chunk[self.at - self._first :][:length]
            parts.append(part)
            self.at, length = self.at + len(part), length - len(part)
        return b"".join(parts)

    def skip(self, length: int) -> None:
        """Pass over some bytes."""
        self.at += length


class _Local:
    """A local file that is read forwards."""

    def __init__(self, address: str) -> None:
        self.file = open(address, "rb", buffering=4096)  # noqa: SIM115  # closed by `closing`
        self.read, self.close = self.file.read, self.file.close

    def skip(self, length: int) -> None:
        """Pass over some bytes."""
        if length:
            self.file.seek(length, os.SEEK_CUR)


@contextmanager
def _forwards(address: str, size: int) -> Iterator[Forwards | _Local]:
    if is_remote(address):
        yield Forwards(address, size)
        return
    file = _Local(address)
    try:
        yield file
    finally:
        file.close()


def index_tar(address: str, wanted: Wanted, its: Info) -> tuple[Header, Arrays]:
    """Read a tar file once; a BadShard where it is not whole."""
    samples = _Samples(address, wanted)
    try:
        with _forwards(address, its.size) as file:
            tar = Tar(file, its.size)
            for member in tar:
                samples.add(member, tar)
            samples.finish()
    except DamagedTar as error:
        raise BadShard(str(error)) from error
    except OSError as error:
        raise BadShard(error.strerror or "cannot be read") from error
    return samples.index(its)


class _Samples:
    """Members of a tar file put together by their common stem, as they follow each other."""

    def __init__(self, address: str, wanted: Wanted) -> None:
        self.address, self.wanted = address, wanted
        self.shard = name_of(address)
        self.label_member = wanted.label and wanted.label.partition(":")[0]
        self.starts: list[int] = []
        self.lengths: list[int] = []
        self.numbers: list[int] = []
        self.labels: list[int] = []
        self.codes: dict[str, int] = {}
        self.unused: Counter[str] = Counter()
        self.lacking = (0, "")
        self.stem: str | None = None
        self.image: tuple[Member, str] | None = None
        self.label: str | None = None

    def add(self, member: Member, tar: Tar) -> None:
        """Take a member in."""
        folder, _, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        if not stem:  # hidden, as are the resource forks of macOS
            self.unused["(hidden)"] += 1
            return
        stem, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        if stem != self.stem:
            self.finish()
            self.stem = stem
        if extension == self.label_member:
            self.label = self._label(tar.content(member))
        elif extension == self.wanted.image if self.wanted.image is not None else extension in IMAGES:
            if self.image is not None:
                raise Misfit(
                    ("data", "image"),
                    f"{self._where()} has members {self.image[1]} and {extension}; say which is the image",
                )
            self.image = member, extension
        else:
            self.unused[extension or "(none)"] += 1

    def finish(self) -> None:
        """The sample is complete."""
        if self.stem is None:
            return
        if self.image is None:
            count, first = self.lacking
            self.lacking = count + 1, first or self.stem
        elif self.label is None and self.label_member is not None:
            raise Misfit(
                ("data", "label"),
                f"{self._where()} has no member {self.label_member}; null says that there are no labels",
            )
        else:
            self.starts.append(self.image[0].start)
            self.lengths.append(self.image[0].length)
            self.numbers.append(number_of(f"{self.shard}/{self.stem}"))
            self.labels.append(
                0 if self.label is None else self.codes.setdefault(self.label, len(self.codes))
            )
        self.stem = self.image = self.label = None

    def index(self, its: Info) -> tuple[Header, Arrays]:
        """What was found."""
        if not self.starts:
            there = printable(", ".join(self.unused) or "none", 100)
            raise BadShard(f"holds no image ({self.lacking[0]} samples; members that are not used: {there})")
        header = Header(
            its.size,
            its.stamp,
            (len(self.starts),),
            tuple(self.codes),
            unused=dict(self.unused),
            lacking=self.lacking,
        )
        return header, Arrays(
            np.array(self.starts, np.uint64),
            np.array(self.lengths, np.uint32),
            np.array(self.labels, np.int32),
            np.array(self.numbers, np.uint32),
        )

    def _label(self, content: bytes) -> str:
        try:
            text = content.decode().strip()
            if self.wanted.label is not None and self.wanted.label.startswith(JSON):
                value: Any = json.loads(text)
                for key in self.wanted.label.removeprefix(JSON).split("."):
                    value = value[key]
                if not isinstance(value, (str, int)):
                    raise TypeError
                text = str(value)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise Misfit(
                ("data", "label"), f"{self._where()}: its label is neither a text nor a whole number"
            ) from None
        return text

    def _where(self) -> str:
        return f"{shown(self.address)}: sample {printable(self.stem or '', 100)}"
