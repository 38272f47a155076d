"""Images in Parquet files, laid out as data set hubs export them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from dino_lab.components.data._class_labels import Several
from dino_lab.components.data._labelled import FileOptions, Size
from dino_lab.components.data._masked_files import FromMaskedFiles
from dino_lab.components.data._masks import Objects
from dino_lab.components.data._paths import named_path
from dino_lab.components.data._rows import Columns, Rows, number_texts, read_schema
from dino_lab.components.data._storage import Split
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import shown
from dino_lab.imaging.report import PassedOver, passed_over
from dino_lab.registry import Flat, register


@register("data", "parquet")
class Parquet(FromMaskedFiles):
    """Images of Parquet files: a column struct{bytes, path} and a column of labels, whole numbers or text.

    `path` is a folder, in which `train` and `test` are glob patterns, one or many files each; or it is a
    file or a glob pattern that names the training files, with `test` in the same folder. `train: null` says
    that there are none, for data that are only evaluated on, and `label_column: null` that there are no
    labels. Class names come from the schema's `huggingface` metadata; without them distinct labels are
    numbered by sorting, and are the names. `mask_column` names encoded masks of the images' own size:
    `binary`, where all that is not 0 is the object, or `numbered`, 0 background, 1, 2, ... the objects and
    255 void. The encoded files are read into memory.
    """

    without = "there are no masks; data.mask_column names the column that has them"

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder of the files, or the training files by name")],
        size: Size,
        train: Annotated[
            str | None, Field(description="pattern of the training files; null: only evaluated on")
        ] = "train*.parquet",
        test: Annotated[str, Field(description="pattern of the test files")] = "test*.parquet",
        image_column: Annotated[str, Field(description="column of encoded images")] = "image",
        label_column: Annotated[
            str | None,
            Field(description="column of the classes, whole numbers or text; null: there are no labels"),
        ] = "label",
        hidden_labels: Annotated[
            Literal["refuse", "skip"],
            Field(description="of rows whose label is missing or -1: refuse them, or leave them out"),
        ] = "refuse",
        several_labels: Annotated[
            Several,
            Field(description="of rows with a list of labels: refuse them, or take the first of each"),
        ] = "refuse",
        mask_column: Annotated[
            str | None, Field(description="column of encoded masks of the images' size; null: there are none")
        ] = None,
        masks: Annotated[
            Objects,
            Field(description="binary: not 0 is the object; numbered: 1, 2, ... are objects, 255 is void"),
        ] = "binary",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        folder, train_files, test_files = _find(path, train, test)
        columns = Columns(image_column, label_column, mask_column, hidden_labels, several_labels)
        sources: dict[Split, Rows] = {"test": Rows(test_files, columns)}
        if train_files:
            sources = {"train": Rows(train_files, columns), **sources}
        splits = list(sources.values())
        self.labelled = label_column is not None
        names: tuple[str, ...] | None = ("all",)
        if label_column is not None:
            names = number_texts(splits) or _class_names(splits[0].files[0], label_column)
        self.passed_over = _beside(folder, {*train_files, *test_files}) + _hidden(splits)
        if several := sum(rows.several for rows in splits):
            self.notes = (f"{several} images have several labels, of which the first is taken",)
        objects = None if mask_column is None else masks
        super().__init__(device, sources, names, size=size, options=options, objects=objects)


def _find(path: str, train: str | None, test: str) -> tuple[Path, list[Path], list[Path]]:
    """The folder, and the files of both splits in it."""
    folder = named_path(path)
    if not folder.is_dir():
        if train is None:
            raise Misfit(
                ("data", "path"),
                f"{printable(path, 200)} is not a folder; with data.train: null it should be one",
            )
        folder, train = folder.parent, folder.name
        if not folder.is_dir() or not (has_magic(train) or (folder / train).exists()):
            raise Misfit(("data", "path"), f"{printable(path, 200)} does not exist")
    train_files = [] if train is None else _match(folder, train, "train")
    test_files = _match(folder, test, "test")
    both = sorted(set(train_files) & set(test_files))
    if both:
        raise UserError(f"{shown(both[0])}: matches both data.train ({train}) and data.test ({test})")
    return folder, train_files, test_files


def _beside(folder: Path, used: set[Path]) -> tuple[PassedOver, ...]:
    """Parquet files of the folder that belong to neither split."""
    others = [file for file in folder.glob("*.parquet") if file not in used]
    return passed_over(
        folder, {"Parquet file that neither data.train nor data.test names": others} if others else {}
    )


def _hidden(splits: Sequence[Rows]) -> tuple[PassedOver, ...]:
    """Rows that are left out since their label is hidden."""
    hidden = sum(rows.hidden for rows in splits)
    return (PassedOver("row whose label is hidden (missing or -1)", hidden),) if hidden else ()


def _match(folder: Path, pattern: str, split: str) -> list[Path]:
    try:
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
    except (ValueError, NotImplementedError) as error:
        raise Misfit(("data", split), f"{pattern!r} is no glob pattern below {folder} ({error})") from None
    if not files:
        there = ", ".join(sorted(file.name for file in folder.glob("*.parquet"))[:8]) or "no Parquet file"
        raise Misfit(
            ("data", split), f"nothing in {shown(folder)} matches {pattern}; there is: {printable(there)}"
        )
    return files


def _class_names(file: Path, label_column: str) -> tuple[str, ...] | None:
    metadata = read_schema(file).metadata or {}
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][label_column]
        names = feature.get("feature", feature)["names"]  # inside where a row has a list of labels
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
