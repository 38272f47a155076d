"""The rows of Parquet files: encoded images, and labels and masks where there are columns of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from dino_lab.errors import UserError, printable
from dino_lab.imaging.decode import BadImage, opened
from dino_lab.imaging.files import shown


class Columns(NamedTuple):
    """The names of the columns that are read."""

    image: str
    label: str | None
    mask: str | None = None


class Rows:
    """The rows of several files; without a column of labels all are 0."""

    def __init__(self, files: list[Path], columns: Columns) -> None:
        tables = [_read(file, columns) for file in files]
        self.files = files
        self.ends = np.cumsum([len(table) for table in tables])
        if not self.ends[-1]:
            raise UserError(f"{shown(files[0])}: holds no rows")
        self.encoded = _chunks(tables, "image")
        self.masks = None if columns.mask is None else _chunks(tables, "mask")
        self.labels = torch.zeros(int(self.ends[-1]), dtype=torch.int64)
        if columns.label is not None:
            labels = [_integers(table["label"], file) for table, file in zip(tables, files, strict=True)]
            self.labels = torch.from_numpy(np.concatenate(labels))

    def open(self, index: int) -> Image.Image:
        return _opened(self.encoded[index].as_py())

    def open_objects(self, index: int) -> Image.Image:
        assert self.masks is not None, "asked of rows with masks only"
        return _opened(self.masks[index].as_py())

    def open_classes(self, index: int) -> None:
        """None: the objects of a row are all of its label."""

    def where(self, index: int) -> str:
        file = int(np.searchsorted(self.ends, index, side="right"))
        return f"{shown(self.files[file])}: row {index - (self.ends[file - 1] if file else 0)}"

    def name(self, index: int) -> str:
        return str(index)


def _opened(encoded: bytes | None) -> Image.Image:
    if encoded is None:
        raise BadImage("the row holds no bytes")
    return opened(encoded)


def _chunks(tables: list[pa.Table], column: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for table in tables for chunk in table[column].chunks])


def read_schema(file: Path) -> Any:
    """The schema of a file; a UserError where it is damaged."""
    with _whole(file):
        return pq.read_schema(file)


def _read(file: Path, columns: Columns) -> pa.Table:
    """Columns `image` and `mask` (encoded bytes) and `label`, as far as they are asked for."""
    asked = {key: name for key, name in columns._asdict().items() if name is not None}
    there = read_schema(file).names
    for key, name in asked.items():
        if name not in there:
            names = printable(", ".join(there), 300)
            raise UserError(f"{shown(file)}: no column {name!r} (data.{key}_column); there is: {names}")
    with _whole(file):
        found = {
            key: pq.read_table(file, columns=[name], partitioning=None)[name] for key, name in asked.items()
        }
        for column in found.values():
            column.validate(full=True)  # a damaged page may give offsets that lead out of it
    for key in found.keys() - {"label"}:
        found[key] = _bytes(found[key], file, asked[key])
    return pa.table(found)


@contextmanager
def _whole(file: Path) -> Iterator[None]:
    """A UserError for what pyarrow says of a damaged file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as error:
        reason = printable(" ".join(str(error).split()), 120)
        raise UserError(f"{shown(file)}: not a whole Parquet file ({reason})") from error


def _bytes(column: Any, file: Path, name: str) -> Any:
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pc.struct_field(column, "bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise UserError(f"{shown(file)}: column {name!r} is {column.type}, not struct<bytes: binary, path>")
    return column.cast(pa.large_binary())


def _integers(column: Any, file: Path) -> Any:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{shown(file)}: the label column is {column.type}, not integers")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UserError(f"{shown(file)}: row {row}: label is missing")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise UserError(f"{shown(file)}: a label is more than 64 bits hold ({error})") from error
