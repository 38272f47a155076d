"""The index of a shard: where its images lie, their labels, and a number that divides them into splits.

It is a line of JSON (`Header`), then four arrays. It lies beside the shard, or where that cannot be
written or is remote, in the cache's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from dino_lab.components.data._pack_format import replacing
from dino_lab.components.data._shard_files import BadShard, is_remote
from dino_lab.imaging.files import INDEX_SUFFIX, shown

FORMAT = 1
INDEXES = "indexes"  # folder of the cache
LONGEST_HEADER = 1 << 26


class Wanted(NamedTuple):
    """Which part of a sample is the image, and which its label: members or columns; see `Shards`."""

    image: str | None
    label: str | None


@dataclass(frozen=True)
class Header:
    """What is known of a shard without its arrays."""

    size: int
    stamp: str
    groups: tuple[int, ...]  # images of each row group; of a tar file, of the whole
    labels: tuple[str, ...]  # distinct ones; the array of labels numbers these
    names: tuple[str, ...] | None = None  # of classes, where the file has them
    unused: Mapping[str, int] = field(default_factory=dict)  # members by extension, or columns
    lacking: tuple[int, str] = (0, "")  # samples without an image, and the first of them
    heaviest: int = 0  # bytes of the largest row group's images


class Arrays(NamedTuple):
    """Of each image: where it begins and how long it is (of tar files), its label, and its number."""

    starts: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    labels: NDArray[np.int32]
    numbers: NDArray[np.uint32]  # uniform in 0 .. 2^32 - 1, by its name alone


TYPES = ("<u8", "<u4", "<i4", "<u4")


def name_of(address: str) -> str:
    """The file's name in an address."""
    return Path(urlsplit(address).path if is_remote(address) else address).name


def places(address: str, wanted: Wanted, folder: Path) -> list[Path]:
    """Where the index of a shard may be, the best place first."""
    parts = [quote(part, safe="") for part in wanted if part is not None]
    name = ".".join([name_of(address), *parts]) + INDEX_SUFFIX
    digest = hashlib.sha256(address.encode(errors="surrogateescape")).hexdigest()[:16]
    kept = folder / INDEXES / f"{digest}-{name[-150:]}"
    return [kept] if is_remote(address) else [Path(address).with_name(name), kept]


def write_index(file: Path, header: Header, arrays: Arrays) -> None:
    """Write an index, whole or not at all."""
    content = b"".join(
        np.ascontiguousarray(array, dtype).tobytes() for array, dtype in zip(arrays, TYPES, strict=True)
    )
    lengths, checksum = [len(array) for array in arrays], zlib.crc32(content)
    line = json.dumps({"format": FORMAT, **asdict(header), "arrays": lengths, "checksum": checksum})
    with replacing(file) as part:
        part.write_bytes(line.encode() + b"\n" + content)


def read_header(file: Path) -> Header | None:
    """The first line of an index; None where there is no whole index of this version."""
    try:
        with file.open("rb") as opened:
            line = opened.readline(LONGEST_HEADER)
            length = os.fstat(opened.fileno()).st_size
        return _parsed(line, length)[0]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_arrays(file: Path) -> tuple[Header, Arrays]:
    """A whole index; a BadShard where it is damaged."""
    try:
        return whole(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadShard(f"its index {shown(file)} is damaged; remove that file") from error


def whole(content: bytes) -> tuple[Header, Arrays]:
    """An index from its bytes; a ValueError or the like where they are not one."""
    line, _, rest = content.partition(b"\n")
    header, lengths, checksum = _parsed(line + b"\n", len(content))
    if zlib.crc32(rest) != checksum:
        raise ValueError("the checksum is another")
    arrays, at = [], 0
    for length, dtype in zip(lengths, TYPES, strict=True):
        arrays.append(np.frombuffer(rest, dtype, length, at))
        at += arrays[-1].nbytes
    return header, Arrays(*arrays)


def _parsed(line: bytes, size: int) -> tuple[Header, list[int], int]:
    fields: dict[str, Any] = json.loads(line)
    if fields.pop("format") != FORMAT:
        raise ValueError("another version")
    lengths, checksum = fields.pop("arrays"), fields.pop("checksum")
    for key in ("groups", "labels", "names", "lacking"):
        fields[key] = None if fields[key] is None else tuple(fields[key])
    bytes_ = sum(n * np.dtype(dtype).itemsize for n, dtype in zip(lengths, TYPES, strict=True))
    if len(line) + bytes_ != size:
        raise ValueError("cut short")
    return Header(**fields), lengths, checksum


def number_of(name: str) -> int:
    """A number of 32 bits that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:4], "big")
