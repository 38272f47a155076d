"""Row groups of Parquet files as shards: their index, and the images of one of them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dino_lab.components.data import _shard_files
from dino_lab.components.data._shard_files import BadShard, Info, is_remote
from dino_lab.components.data._shard_index import Arrays, Header, Wanted, name_of, number_of
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import shown

IMAGE = "image"  # the column's name where none is given


def index_rows(address: str, wanted: Wanted, its: Info) -> tuple[Header, Arrays]:
    """The index of a Parquet file, from its footer and its labels."""
    with _opened(address, its.size) as file:
        metadata, schema = file.metadata, file.schema_arrow
        image = wanted.image or IMAGE
        for key, name in (("image", image), ("label", wanted.label)):
            if name is not None and name not in schema.names:
                there = printable(", ".join(schema.names), 300)
                raise Misfit(("data", key), f"{shown(address)} has no column {name!r}; there is: {there}")
        _image_type(schema.field(image).type, address, image)
        groups = tuple(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups))
        rows = sum(groups)
        if not rows:
            raise BadShard("holds no rows")
        codes, labels = np.zeros(rows, np.int32), tuple[str, ...]()
        if wanted.label is not None:
            codes, labels = _labels(file, wanted.label, address)
    header = Header(
        its.size,
        its.stamp,
        groups,
        labels,
        _class_names(schema, wanted.label),
        {name: rows for name in schema.names if name not in (image, wanted.label)},
        heaviest=max(_bytes_of(metadata.row_group(i), image) for i in range(len(groups))),
    )
    name = name_of(address)
    numbers = np.array([number_of(f"{name}/{row}") for row in range(rows)], np.uint32)
    return header, Arrays(np.empty(0, np.uint64), np.empty(0, np.uint32), codes, numbers)


def read_group(address: str, size: int, group: int, wanted: Wanted) -> pa.ChunkedArray:
    """The encoded images of a row group, as large_binary."""
    image = wanted.image or IMAGE
    with _opened(address, size) as file:
        column = file.read_row_group(group, columns=[image], use_threads=False)[image]
        column.validate(full=True)  # a damaged page may give offsets that lead out of it
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        return column.cast(pa.large_binary())


def write_group(column: pa.ChunkedArray, into: BinaryIO) -> None:
    """The images of a row group as a file that `map_group` maps into memory."""
    table = pa.table({IMAGE: column})
    with pa.ipc.new_file(into, table.schema) as file:
        file.write_table(table)


def map_group(file: Path) -> pa.ChunkedArray | None:
    """What `write_group` wrote, without reading it; None where it is not there."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(file))).read_all()[IMAGE]
    except FileNotFoundError:
        return None


@contextmanager
def _opened(address: str, size: int) -> Iterator[pq.ParquetFile]:
    """A file; what pyarrow says of a damaged one is a BadShard."""
    try:
        with pq.ParquetFile(_Ranges(address, size) if is_remote(address) else address) as file:
            yield file
    except (UserError, BadShard):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise BadShard(f"not a whole Parquet file ({reason})") from error


class _Ranges(io.RawIOBase):
    """A remote file, of which each read is a request."""

    def __init__(self, address: str, size: int) -> None:
        self.address, self.size, self.at = address, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def read(self, size: int | None = -1, /) -> bytes:
        rest = self.size - self.at
        length = rest if size is None or size < 0 else min(size, rest)
        content = _shard_files.read(self.address, self.at, length) if length > 0 else b""
        self.at += len(content)
        return content


def _image_type(kind: Any, address: str, name: str) -> None:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise Misfit(
            ("data", "image"),
            f"{shown(address)}: column {name!r} is {printable(str(kind), 100)}, not encoded images "
            "(binary, or struct<bytes: binary, path>)",
        )


def _labels(file: pq.ParquetFile, name: str, address: str) -> tuple[Any, tuple[str, ...]]:
    column = file.read(columns=[name])[name]
    if not (pa.types.is_integer(column.type) or _is_text(column.type)):
        raise Misfit(
            ("data", "label"),
            f"{shown(address)}: column {name!r} is {printable(str(column.type), 100)}, neither whole "
            "numbers nor texts",
        )
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise Misfit(("data", "label"), f"{shown(address)}: row {row}: label is missing")
    found = column.combine_chunks().dictionary_encode()
    return found.indices.to_numpy().astype(np.int32), tuple(map(str, found.dictionary.to_pylist()))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _bytes_of(group: Any, image: str) -> int:
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema.split(".")[0] == image)
