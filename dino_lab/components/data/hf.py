"""Data sets of the Hugging Face hub, by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._class_labels import label_of, numbered
from dino_lab.components.data._labelled import UNLABELLED, FileOptions, FromFiles, Size
from dino_lab.errors import Misfit, UserError, first_line, printable
from dino_lab.extras import want
from dino_lab.imaging.decode import BadImage, opened, read_image
from dino_lab.imaging.files import shown
from dino_lab.registry import Flat, register

PICTURES, CLASSES = "Image", "ClassLabel"  # how `datasets` calls the kinds of columns


@register("data", "hf")
class HuggingFace(FromFiles):
    """A data set of the Hugging Face hub, or a folder that its library `datasets` wrote.

    It is downloaded at first and then taken from the library's cache (`HF_HOME`), without a network as well
    (`HF_HUB_OFFLINE=1`). `train` and `test` are names of splits or slices of them, such as `train[:90%]` and
    `train[90%:]`. Labels are a column of classes, of whole numbers or of texts; numbers and texts are
    numbered in ascending order. No program of a data set is run. Needs `dino-lab[hf]`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        dataset: Annotated[
            str, Field(min_length=1, description="name on the hub, such as ylecun/mnist, or a folder")
        ],
        size: Size,
        subset: Annotated[
            str | None, Field(description="one of the data set's configurations; null: the only one")
        ] = None,
        revision: Annotated[
            str | None, Field(description="commit, branch or tag on the hub; null: the newest")
        ] = None,
        train: Annotated[str, Field(description="split to train on, or a slice of one")] = "train",
        test: Annotated[str, Field(description="split to test on, or a slice of one")] = "test",
        image_column: Annotated[
            str | None, Field(description="column of images; null: the only one there is")
        ] = None,
        label_column: Annotated[
            str | None, Field(description="column of classes; null: there are no labels")
        ] = "label",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        tables = [_load(dataset, subset, revision, *asked) for asked in ((train, "train"), (test, "test"))]
        image = _image_column(tables[0], image_column)
        where = [f"{printable(dataset, 100)}, {printable(split, 60)}" for split in (train, test)]
        labels, names = _labels(tables, label_column, where)
        training, tested = map(_Split, tables, [image, image], labels, where)
        self.labelled = label_column is not None
        if revision is None and not os.path.isdir(dataset):
            self.notes = ("the newest revision of the data set; data.revision says which one for good",)
        super().__init__(device, training, tested, names, size=size, **options.model_dump())


class _Split:
    """One split; its table lies in files that are mapped into memory."""

    def __init__(self, table: Any, image: str, labels: torch.Tensor, where: str) -> None:
        kind = _library().Image(decode=False)
        self._images = table.select_columns([image]).cast_column(image, kind)
        self._column, self.labels, self._where = image, labels, where

    def open(self, index: int) -> Image.Image:
        found = self._images[index][self._column]
        if found is None or not (found["bytes"] or found["path"]):
            raise BadImage("the row holds no image")
        return opened(found["bytes"]) if found["bytes"] else read_image(Path(found["path"]))

    def where(self, index: int) -> str:
        return f"{self._where}: row {index}"

    def name(self, index: int) -> str:
        return str(index)


def _library() -> Any:
    return want("datasets", "hf", "data hf")


def _load(name: str, subset: str | None, revision: str | None, split: str, key: str) -> Any:
    """A split as a table; a Misfit says which of the spec's words does not fit."""
    datasets = _library()
    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_dict.json").is_file():
            return _written(folder, split, key)
        if (folder / "dataset_info.json").is_file():
            raise Misfit(("data", "dataset"), f"{shown(folder)} is one split; name the folder above it")
        return datasets.load_dataset(name, subset, revision=revision, split=split)
    except UserError:
        raise
    except ValueError as error:  # of a split, or of a configuration, that is not there
        wrong = key if "split" in str(error).lower() else "subset"
        raise Misfit(
            ("data", wrong), f"{printable(name, 100)}: {printable(first_line(error), 300)}"
        ) from error
    except Exception as error:  # of the network, the hub, and as many formats as there are
        raise Misfit(
            ("data", "dataset"),
            f"{printable(name, 100)} could not be had ({printable(first_line(error), 200)})",
        ) from error


def _written(folder: Path, split: str, key: str) -> Any:
    """A split, or a slice of one, of a folder that `save_to_disk` wrote."""
    datasets = _library()
    whole = split.partition("[")[0]
    if not (folder / whole / "dataset_info.json").is_file():
        there = ", ".join(sorted(info.parent.name for info in folder.glob("*/dataset_info.json")))
        raise Misfit(
            ("data", key), f"{shown(folder)} has no split {whole!r}; there is: {printable(there, 200)}"
        )
    table = datasets.load_from_disk(str(folder / whole))
    parts = datasets.ReadInstruction.from_spec(split).to_absolute({whole: len(table)})
    bounds = [(part.from_ or 0, len(table) if part.to is None else part.to) for part in parts]
    return table.select([row for first, end in bounds for row in range(first, end)])


def _columns(table: Any, kind: str) -> list[str]:
    return [name for name, feature in table.features.items() if type(feature).__name__ == kind]


def _image_column(table: Any, asked: str | None) -> str:
    pictures = _columns(table, PICTURES)
    there = ", ".join(pictures) or f"none; its columns are {', '.join(table.column_names)}"
    if asked is None and len(pictures) == 1:
        return pictures[0]
    if asked in pictures:
        return str(asked)
    wrong = "name one of the columns of images" if asked is None else f"no column of images {asked!r}"
    raise Misfit(("data", "image_column"), f"{wrong}; there is: {printable(there, 200)}")


def _labels(
    tables: Sequence[Any], column: str | None, where: Sequence[str]
) -> tuple[Sequence[torch.Tensor], tuple[str, ...]]:
    """Labels int64 [N] of each table, and the names of the classes; a UserError names a row without one."""
    if column is None:
        return [torch.zeros(len(table), dtype=torch.int64) for table in tables], (UNLABELLED,)
    values: list[list[int | str]] = []
    for table, its in zip(tables, where, strict=True):
        if column not in table.column_names:
            classes = printable(", ".join(_columns(table, CLASSES)) or "none", 200)
            raise Misfit(
                ("data", "label_column"),
                f"no column {column!r}; columns of classes: {classes}; null: no labels",
            )
        values.append([_label(value, f"{its}: row {row}") for row, value in enumerate(table[column])])
    feature = tables[0].features[column]
    if type(feature).__name__ == CLASSES:
        return [torch.tensor(its, dtype=torch.int64) for its in values], tuple(map(str, feature.names))
    return numbered(values)


def _label(value: Any, where: str) -> int | str:
    try:
        label = label_of(value)
    except ValueError as error:
        raise Misfit(("data", "label_column"), f"{where}: {error}") from error
    if label is None:
        raise UserError(f"{where}: the label is missing or hidden; data.label_column: null trains without")
    return label
