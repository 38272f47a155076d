"""Folders of classes: which images there are of each, and what is passed over."""

from __future__ import annotations

import re
from pathlib import Path

from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import DEAD, Listing, entries, list_images, reason_to_skip, shown
from dino_lab.imaging.report import same_name

EMPTY = "folder without an image"
LOOSE = "image in no folder of a class"
TRAIN, HELD_OUT = "train|training", "val|valid|validation|test|testing|dev|eval"
SPLIT = r"(?:[-_ ]?(?:\d+|set|split|images))?"


class ClassFolders:
    """The classes of a folder, each a folder below it; a UserError where they are none."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.images: dict[str, list[Path]] = {}  # by the name of the class's folder, in its order
        self.rest = Listing()
        names = subfolders(folder, self.rest)
        if not names:
            raise UserError(f"{shown(folder)}: holds neither class folders nor images")
        self._check_splits(names, key)
        self._check_twins(names)
        for name in names:
            found = list_images(folder / name)
            if found.images:
                self.images[name] = found.images
            else:
                self.rest.skip(EMPTY, folder / name)
            self.rest.add(Listing([], found.passed_over))

    def _check_splits(self, names: list[str], key: str) -> None:
        train, held_out = _named_like(TRAIN, names), _named_like(HELD_OUT, names)
        nested = len(names) > 1 or bool(subfolders(self.folder / names[0], Listing()))
        if not (train and held_out) and not (len(train + held_out) == len(names) and nested):
            return
        said = printable(", ".join(names), 200)
        found = f"the folders of {shown(self.folder)} are splits, not classes ({said})"
        if key != "test_fraction":
            raise Misfit(("data", key), f"{found}; set data.path: {shown(self.folder)}")
        if train and held_out:
            right = f"leave out test_fraction, and set data.train: {train[0]}, data.test: {held_out[0]}"
        else:
            right = f"set data.path: {shown(self.folder / names[0])}"
        raise Misfit(("data", key), f"{found}; {right}")

    def _check_twins(self, names: list[str]) -> None:
        first: dict[str, str] = {}
        for name in names:
            if first.setdefault(same_name(name), name) != name:
                raise UserError(
                    f"{shown(self.folder / name)}: another folder has this name in another form of Unicode; "
                    "put the images of both into one"
                )


def has_loose_images_alone(folder: Path) -> bool:
    """Whether a folder holds images, and no folder that may be a class."""
    rest = Listing()
    return not subfolders(folder, rest) and LOOSE in rest.passed_over


def subfolders(folder: Path, rest: Listing) -> list[str]:
    """Names of the folders that may hold data; `rest` takes what else lies there."""
    names = []
    for entry in entries(folder):
        path = folder / entry.name
        if reason := reason_to_skip(entry, path):
            rest.skip(reason, path)
        elif path.is_dir():
            names.append(entry.name)
        else:
            rest.skip(LOOSE if path.exists() else DEAD, path)
    return names


def _named_like(pattern: str, names: list[str]) -> list[str]:
    return [name for name in names if re.fullmatch(f"(?:{pattern}){SPLIT}", name, re.IGNORECASE)]
