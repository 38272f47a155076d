"""The rows of Parquet files: encoded images, and labels and masks where there are columns of them.

Labels are whole numbers, as hubs have them, or text; see `Labels`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from dino_lab.components.data._class_labels import HIDDEN, Several, label_of, numbered
from dino_lab.errors import UserError, printable
from dino_lab.imaging.decode import BadImage, opened
from dino_lab.imaging.files import shown

SKIP = "; data.hidden_labels: skip leaves such rows out"


class Columns(NamedTuple):
    """The names of the columns that are read, and what is made of labels that are not one for each image."""

    image: str
    label: str | None
    mask: str | None = None
    hidden: Literal["refuse", "skip"] = "refuse"
    several: Several = "refuse"


class Rows:
    """The rows of several files; without a column of labels all are 0.

    `texts` are the labels where they are text; `number_texts` makes numbers of them.
    """

    def __init__(self, files: list[Path], columns: Columns) -> None:
        tables = [_read(file, columns) for file in files]
        self.files = files
        self.ends = np.cumsum([len(table) for table in tables])
        if not self.ends[-1]:
            raise UserError(f"{shown(files[0])}: holds no rows")
        self.encoded = _chunks(tables, "image")
        self.masks = None if columns.mask is None else _chunks(tables, "mask")
        self.kept = np.arange(self.ends[-1])  # rows whose label is not hidden
        self.several = 0  # rows with several labels, of which the first is taken
        self.texts: list[str] | None = None
        self.labels = torch.zeros(len(self.kept), dtype=torch.int64)
        if columns.label is not None:
            self._take([(table["label"], file) for table, file in zip(tables, files, strict=True)], columns)

    def _take(self, found: list[tuple[Any, Path]], columns: Columns) -> None:
        """Labels of each file, as numbers, or as text in `texts`."""
        values: list[Any] = []
        for column, file in found:
            labels, several = _labels(column, file, columns)
            if values and _is_text(labels) != _is_text(values[0]):
                raise UserError(
                    f"{shown(file)}: the label column is {column.type}, and {shown(found[0][1])} has "
                    f"{found[0][0].type}"
                )
            values.append(labels)
            self.several += several
        labels = np.concatenate(values)
        if columns.hidden == "skip":
            hidden = np.array([text is None for text in labels]) if _is_text(labels) else labels == HIDDEN
            self.kept = np.flatnonzero(~hidden)
            if not len(self.kept):
                raise UserError(f"{shown(self.files[0])}: all labels are hidden; data.label_column: null")
        labels = labels[self.kept]
        if _is_text(labels):
            self.texts = labels.tolist()
        else:
            self.labels = torch.from_numpy(labels)

    @property
    def hidden(self) -> int:
        """How many rows are left out since their label is hidden."""
        return int(self.ends[-1]) - len(self.kept)

    def open(self, index: int) -> Image.Image:
        return _opened(self.encoded[int(self.kept[index])].as_py())

    def open_objects(self, index: int) -> Image.Image:
        assert self.masks is not None, "asked of rows with masks only"
        return _opened(self.masks[int(self.kept[index])].as_py())

    def open_classes(self, index: int) -> None:
        """None: the objects of a row are all of its label."""

    def where(self, index: int) -> str:
        row = int(self.kept[index])
        file = int(np.searchsorted(self.ends, row, side="right"))
        return f"{shown(self.files[file])}: row {row - (self.ends[file - 1] if file else 0)}"

    def name(self, index: int) -> str:
        return str(self.kept[index])


def number_texts(splits: Sequence[Rows]) -> tuple[str, ...] | None:
    """Number the labels of all splits, in place, where they are text; the names of the classes."""
    texts = [rows.texts for rows in splits if rows.texts is not None]
    if not texts:
        return None
    if len(texts) < len(splits):
        wrong = next(rows for rows in splits[::-1] if (rows.texts is None) != (splits[0].texts is None))
        kind, other = ("integers", "text") if wrong.texts is None else ("string", "integers")
        raise UserError(
            f"{shown(wrong.files[0])}: the label column is {kind}, not {other} as in "
            f"{shown(splits[0].files[0])}"
        )
    numbers, names = numbered(texts)
    for rows, its in zip(splits, numbers, strict=True):
        rows.labels = its
    return names


def _opened(encoded: bytes | None) -> Image.Image:
    if encoded is None:
        raise BadImage("the row holds no bytes")
    return opened(encoded)


def _chunks(tables: list[pa.Table], column: str) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for table in tables for chunk in table[column].chunks])


def read_schema(file: Path) -> Any:
    """The schema of a file; a UserError where it is damaged."""
    with whole_parquet(file):
        return pq.read_schema(file)


def _read(file: Path, columns: Columns) -> pa.Table:
    """Columns `image` and `mask` (encoded bytes) and `label`, as far as they are asked for."""
    names = {"image": columns.image, "label": columns.label, "mask": columns.mask}
    asked = {key: name for key, name in names.items() if name is not None}
    there = read_schema(file).names
    for key, name in asked.items():
        if name not in there:
            others = printable(", ".join(there), 300)
            raise UserError(f"{shown(file)}: no column {name!r} (data.{key}_column); there is: {others}")
    with whole_parquet(file):
        found = {
            key: pq.read_table(file, columns=[name], partitioning=None)[name] for key, name in asked.items()
        }
        for column in found.values():
            column.validate(full=True)  # a damaged page may give offsets that lead out of it
    for key in found.keys() - {"label"}:
        found[key] = _bytes(found[key], file, asked[key])
    return pa.table(found)


@contextmanager
def whole_parquet(file: Path) -> Iterator[None]:
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


def _is_text(labels: Any) -> bool:
    return bool(labels.dtype == object)


def _labels(column: Any, file: Path, columns: Columns) -> tuple[Any, int]:
    """Labels int64 [N], or as text in an array of objects, None where hidden; and how many rows have several.

    A UserError names the first row whose label is missing, or is not the only one.
    """
    several = 0
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column, several = _first_of_each(column, file, columns)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = [label_of(value) for value in column.to_pylist()]
        if columns.hidden == "refuse" and None in texts:
            raise UserError(f"{shown(file)}: row {texts.index(None)}: label is missing{SKIP}")
        labels = np.empty(len(texts), dtype=object)
        labels[:] = texts
        return labels, several
    if columns.hidden == "skip" and pa.types.is_integer(column.type):
        column = pc.fill_null(column, pa.scalar(HIDDEN, column.type))
    return _integers(column, file), several


def _first_of_each(column: Any, file: Path, columns: Columns) -> tuple[Any, int]:
    """The first value of each list, null where there is none; and how many lists have more than one."""
    counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    several = int((counts > 1).sum())
    if several and columns.several == "refuse":
        row = int((counts > 1).argmax())
        raise UserError(
            f"{shown(file)}: row {row}: {counts[row]} labels, and scores compare one; "
            "data.several_labels: first takes the first of them"
        )
    firsts = [values[0] if values else None for values in column.to_pylist()]
    return pa.chunked_array([pa.array(firsts, type=column.type.value_type)]), several


def _integers(column: Any, file: Path) -> Any:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{shown(file)}: the label column is {column.type}, not whole numbers or text")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UserError(f"{shown(file)}: row {row}: label is missing{SKIP}")
    try:
        return column.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise UserError(f"{shown(file)}: a label is more than 64 bits hold ({error})") from error
