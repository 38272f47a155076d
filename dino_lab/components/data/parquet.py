"""Images in Parquet files, laid out as data set hubs export them."""

from __future__ import annotations

import io
import json
from glob import has_magic
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from dino_lab.components.data._labelled import IMAGENET_MEAN, IMAGENET_STD, FromFiles, Limit, Mean, Size, Std
from dino_lab.components.data._storage import OnBadImage
from dino_lab.errors import UserError
from dino_lab.registry import register


@register("data", "parquet")
class Parquet(FromFiles):
    """Images of Parquet files: a column struct{bytes, path} and a column of integer labels.

    `path` is a folder, in which `train` and `test` are glob patterns, one or many files each; or it is a
    file or a glob pattern that names the training files, with `test` in the same folder. Class names come
    from the schema's `huggingface` metadata; without them the classes are 0 .. the largest training label.
    The encoded files are read into memory.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: str,
        size: Size,
        train: str = "train*.parquet",
        test: str = "test*.parquet",
        image_column: str = "image",
        label_column: str = "label",
        limit: Limit = None,
        on_bad_image: OnBadImage = "error",
        mean: Mean = IMAGENET_MEAN,
        std: Std = IMAGENET_STD,
    ) -> None:
        train_files, test_files = _find(path, train, test)
        columns = (image_column, label_column)
        super().__init__(
            device,
            _Rows(train_files, *columns),
            _Rows(test_files, *columns),
            _class_names(train_files[0], label_column),
            size=size,
            limit=limit,
            on_bad_image=on_bad_image,
            mean=mean,
            std=std,
        )


class _Rows:
    """The rows of several files."""

    def __init__(self, files: list[Path], image_column: str, label_column: str) -> None:
        tables = [_read(file, image_column, label_column) for file in files]
        self.files = files
        self.ends = np.cumsum([len(table) for table in tables])
        if not self.ends[-1]:
            raise UserError(f"{files[0]}: holds no rows")
        self.encoded = pa.chunked_array([chunk for table in tables for chunk in table["image"].chunks])
        labels = [_integers(table["label"], file) for table, file in zip(tables, files, strict=True)]
        self.labels = torch.from_numpy(np.concatenate(labels))

    def open(self, index: int) -> Image.Image:
        encoded = self.encoded[index].as_py()
        if encoded is None:
            raise ValueError("the row holds no bytes")
        return Image.open(io.BytesIO(encoded))

    def where(self, index: int) -> str:
        file = int(np.searchsorted(self.ends, index, side="right"))
        return f"{self.files[file]}: row {index - (self.ends[file - 1] if file else 0)}"


def _find(path: str, train: str, test: str) -> tuple[list[Path], list[Path]]:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        folder, train = folder.parent, folder.name
    if not folder.is_dir() or not (has_magic(train) or (folder / train).exists()):
        raise UserError(f"data.path: {path} does not exist")
    train_files, test_files = _match(folder, train, "train"), _match(folder, test, "test")
    both = sorted(set(train_files) & set(test_files))
    if both:
        raise UserError(f"{both[0]}: matches both data.train ({train}) and data.test ({test})")
    return train_files, test_files


def _match(folder: Path, pattern: str, split: str) -> list[Path]:
    try:
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"data.{split}: {pattern!r} is no glob pattern below {folder} ({error})") from None
    if not files:
        there = ", ".join(sorted(file.name for file in folder.glob("*.parquet"))[:8]) or "no Parquet file"
        raise UserError(f"data.{split}: nothing in {folder} matches {pattern}; there is: {there}")
    return files


def _read(file: Path, image_column: str, label_column: str) -> pa.Table:
    """Columns `image` (encoded bytes) and `label`."""
    try:
        schema = pq.read_schema(file)
        for column, key in ((image_column, "image_column"), (label_column, "label_column")):
            if column not in schema.names:
                there = ", ".join(schema.names)
                raise UserError(f"{file}: no column {column!r} (data.{key}); there is: {there}")
        images, labels = (
            pq.read_table(file, columns=[column], partitioning=None)[column]
            for column in (image_column, label_column)
        )
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole Parquet file ({' '.join(str(error).split())[:120]})") from error
    if pa.types.is_struct(images.type) and images.type.get_field_index("bytes") >= 0:
        images = pc.struct_field(images, "bytes")
    if not (pa.types.is_binary(images.type) or pa.types.is_large_binary(images.type)):
        raise UserError(f"{file}: column {image_column!r} is {images.type}, not struct<bytes: binary, path>")
    return pa.table({"image": images.cast(pa.large_binary()), "label": labels})


def _integers(column: Any, file: Path) -> Any:
    if not pa.types.is_integer(column.type):
        raise UserError(f"{file}: the label column is {column.type}, not integers")
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UserError(f"{file}: row {row}: label is missing")
    return column.cast(pa.int64()).to_numpy()


def _class_names(file: Path, label_column: str) -> tuple[str, ...] | None:
    metadata = pq.read_schema(file).metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
