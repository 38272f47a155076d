"""Labels of images that lie in a table beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field

from dino_lab.components.data._class_labels import Label, Several, SeveralLabels, label_of
from dino_lab.components.data._tables import read_columns
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import Listing, shown
from dino_lab.imaging.report import same_name
from dino_lab.registry import ParameterGroup

NO_ROW = "image without a row in the table of labels"
NO_LABEL = "image whose label is hidden (empty or -1)"
NO_IMAGE = "row of the table of labels whose image is not there"


class LabelTable(ParameterGroup):
    """A table of labels beside the images: CSV, JSON (a list of mappings), JSON lines or Parquet.

    Labels are whole numbers or text, and are numbered by sorting. Images whose label is empty or -1, and
    images without a row, are left out and counted, and so are rows without an image. To train on all images,
    let `data` have `labels: none` and `evaluate_on` the table.
    """

    file: str = Field(description="the table, from where `path` is")
    image: str = Field(
        description="column of the images: paths below `path`, or file names, with or without suffix"
    )
    label: str = Field(description="column of the labels")
    split: str | None = Field(
        None, description="column that names the split of each image, as `train` and `test` do; null: none"
    )
    several: Several = Field(
        "refuse", description="of an image with several labels: refuse it, or take its first label"
    )


@dataclass
class TableRows:
    """What a table says of the images that it names and labels."""

    labels: dict[Path, Label] = field(default_factory=dict)
    splits: dict[Path, str] = field(default_factory=dict)
    groups: dict[Path, str] = field(default_factory=dict)
    several: int = 0  # images with several labels, of which the first is taken

    def notes(self) -> tuple[str, ...]:
        """What was made of several labels."""
        if not self.several:
            return ()
        return (f"{self.several} images have several labels, of which the first is taken",)


def read_labels(
    table: LabelTable, group: str | None, images: Sequence[Path], root: Path, splits: Sequence[str]
) -> tuple[TableRows, Listing]:
    """What a table says of images below `root`, and which of them, and of its rows, are passed over.

    `group` is a column, and `splits` are folders below `root` that may have a table each. A UserError where
    a row may mean several images, or has several labels.
    """
    found, rest = TableRows(), Listing()
    by_name = _ByName(images, root)
    unlabelled: dict[Path, None] = {}
    for file, base in _files(table, root, splits):
        names = [table.image, table.label, *filter(None, (table.split, group))]
        for number, row in enumerate(zip(*read_columns(file, names), strict=True), 1):
            where = f"{shown(file)}: row {number}"
            values = dict(zip(names, row, strict=True))
            image = by_name.find(values[table.image], base, where)
            if image is None:
                rest.skip(NO_IMAGE, base / printable(str(values[table.image]), 200))
            elif (label := _label(values[table.label], image, table, found, where)) is None:
                unlabelled[image] = None
            else:
                found.labels.setdefault(image, label)
                if table.split is not None:
                    found.splits[image] = str(values[table.split])
                if group is not None:
                    found.groups[image] = str(values[group])
    for image in images:
        if image not in found.labels:
            rest.skip(NO_LABEL if image in unlabelled else NO_ROW, image)
    return found, rest


def _files(table: LabelTable, root: Path, splits: Sequence[str]) -> list[tuple[Path, Path]]:
    """The tables, each with the folder that its images' paths begin in."""
    file = root / Path(table.file).expanduser()
    if file.is_file():
        return [(file, root)]
    both = [(root / split / table.file, root / split) for split in splits]
    if both and all(file.is_file() for file, _ in both):
        return both
    raise Misfit(("data", "labels", "file"), f"{shown(file)} is not there")


def _label(value: object, image: Path, table: LabelTable, found: TableRows, where: str) -> Label | None:
    """The label of a row, None where it is hidden; a UserError where it is none, or not the only one."""
    try:
        label = label_of(value)
        if label is None or found.labels.get(image, label) == label:
            return label
        raise SeveralLabels("another label than in an earlier row")
    except SeveralLabels as error:
        if table.several == "refuse":
            raise UserError(
                f"{where}: {shown(image.name)} has {error}, and scores compare one; data.labels.several: "
                "first takes the first of them"
            ) from error
        found.several += 1
        return label_of(value, "first")
    except ValueError as error:
        raise UserError(f"{where}: column {table.label!r}: {error}") from error


class _ByName:
    """Images by what a table may call them."""

    def __init__(self, images: Sequence[Path], root: Path) -> None:
        self.root = root
        self.exact = {same_name(os.path.relpath(image, root)): image for image in images}
        self.short: dict[str, Path | None] = {}  # None: of several images
        for path, image in self.exact.items():
            for name in {os.path.splitext(path)[0], *map(same_name, (image.name, image.stem))}:
                self.short[name] = None if name in self.short else image

    def find(self, name: object, base: Path, where: str) -> Path | None:
        """The image, or None where there is none; a UserError where there are several."""
        if not isinstance(name, (str, int)) or name == "":
            raise UserError(f"{where}: names no image")
        text = same_name(str(name).replace("\\", "/"))
        path = same_name(os.path.relpath(base / text, self.root))
        if path in self.exact:
            return self.exact[path]
        for short in (path, os.path.normpath(text)):
            if short in self.short:
                if (image := self.short[short]) is not None:
                    return image
                raise UserError(
                    f"{where}: several images are called {printable(short, 200)}; the path below data.path "
                    "tells them apart"
                )
        return None
