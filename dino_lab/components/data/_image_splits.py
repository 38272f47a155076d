"""Which images a folder has for each split, and their classes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dino_lab.components.data._class_folders import ClassFolders, has_loose_images_alone, subfolders
from dino_lab.components.data._class_labels import Label, numbered
from dino_lab.components.data._image_labels import NO_LABEL, NO_ROW, LabelTable, TableRows, read_labels
from dino_lab.components.data._labelled import UNLABELLED
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import OnBadImage
from dino_lab.components.data._unlabelled import Pool, is_folder_alone, pool
from dino_lab.components.data._validation_labels import has_own_labels, own_classes
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.files import DEAD, Listing, list_images, shown
from dino_lab.imaging.report import passed_over, same_name

UNASKED = "folder that is neither data.train nor data.test"
OTHER_SPLIT = "image of a split that is neither data.train nor data.test"
# Names that splits have, where they are not called `train` and `test`.
USUAL = {"train": ("training",), "test": ("val", "valid", "validation", "testing", "dev", "eval")}
FOLDER = "folder"  # a group of its own


@dataclass(frozen=True)
class Asked:
    """What a spec says of the images; see `ImageFolder`."""

    path: str | list[str]
    train: str
    test: str
    test_fraction: float | None
    labels: Literal["folders", "none"] | LabelTable
    group: str | None


@dataclass
class Found:
    """Files and labels of both splits, in the order of their paths, and what was passed over."""

    root: Path
    classes: list[str]  # by label
    train: list[tuple[Path, int]]
    test: list[tuple[Path, int]]
    rest: Listing
    labelled: bool = True
    said: tuple[str, ...] = ()  # which folders were taken for splits

    def check(self, on_bad_image: OnBadImage) -> None:
        """A UserError where a split is empty, or a link that may have been a class leads nowhere."""
        for path in self.rest.passed_over.get(DEAD, ()):
            if on_bad_image == "error" and not path.suffix:
                raise UserError(
                    f"{shown(path)}: a link to {shown(os.readlink(path))}, which is not there; fetch that, "
                    "remove the link, or set data.on_bad_image: skip"
                )
        for split, some in (("training", self.train), ("test", self.test)):
            if not some:
                beside = "; ".join(map(str, passed_over(self.root, self.rest.passed_over))) or "nothing"
                raise UserError(
                    f"{shown(self.root)}: the {split} split holds no image; passed over: {beside}"
                )

    def notes(self) -> tuple[str, ...]:
        """Folders that were taken for splits, and that may be meant as classes where one was found."""
        return self.said + self._missed_classes()

    def _missed_classes(self) -> tuple[str, ...]:
        if len(self.classes) > 1 or not self.labelled:
            return ()
        parents = {file.parent for file, _ in self.train + self.test}
        above = os.path.commonpath(parents)
        if len(parents) < 2 or str(self.root) == above:
            return ()
        below = f"{len(parents)} folders below {shown(above)}"
        return (f"{below} are one class; with that as data.path each would be a class",)


def find(asked: Asked) -> Found:
    """The images of both splits; a Misfit or UserError says what would be right where there are none."""
    _check_group(asked)
    if isinstance(asked.labels, LabelTable):
        return _of_table(asked, asked.labels)
    alone = is_folder_alone(asked.path)
    if asked.labels == "folders" and alone:
        root = named_folder(_first(asked.path))
        if not has_loose_images_alone(root):
            return _splits(root, asked) if asked.test_fraction is None else _hashed(root, asked)
    if asked.test_fraction is not None:
        return _unlabelled(pool(asked.path), asked)
    root = Path(_first(asked.path)).expanduser()
    names, said = _names_of_splits(root, asked) if alone else ([], ())
    if not names or not all((root / name).is_dir() for name in names):
        raise Misfit(
            ("data", "test_fraction"),
            "images without labels are divided by it: set data.test_fraction: 0.1, or make the folders "
            f"{printable(asked.train, 60)} and {printable(asked.test, 60)}",
        )
    splits = [pool(str(root / name)) for name in names]
    rest = splits[0].rest
    rest.add(splits[1].rest)
    files = [[(file, 0) for file in split.images] for split in splits]
    return Found(root, [UNLABELLED], files[0], files[1], rest, labelled=False, said=said)


def _first(path: str | list[str]) -> str:
    return path if isinstance(path, str) else path[0]


def _check_group(asked: Asked) -> None:
    if asked.group is None:
        return
    if asked.test_fraction is None:
        raise Misfit(
            ("data", "group"),
            "data.test_fraction divides the images by it; set one, for example 0.1, or leave group out",
        )
    if asked.group != FOLDER and not isinstance(asked.labels, LabelTable):
        raise Misfit(
            ("data", "group"),
            f"{printable(asked.group, 60)} would be a column of a table, and data.labels names none; "
            f"{FOLDER} keeps the images of a folder together",
        )


def _unlabelled(found: Pool, asked: Asked) -> Found:
    """A share of the images for each split, by the hash of their names; each has one where there are two."""
    groups = found.images
    if asked.group == FOLDER:
        groups = {file: os.path.dirname(name) or "." for file, name in found.images.items()}
    tested = _tested_groups(groups, asked)
    train = [(file, 0) for file in found.images if file not in tested]
    test = [(file, 0) for file in found.images if file in tested]
    return Found(found.root, [UNLABELLED], train, test, found.rest, labelled=False)


def _splits(root: Path, asked: Asked) -> Found:
    """Of a folder for each split, with a folder for each class, or with labels of its own."""
    rest = Listing()
    folders, said = _names_of_splits(root, asked)
    others = set(subfolders(root, rest)) - {part for name in folders for part in Path(name).parts[:1]}
    for name in sorted(others):
        rest.skip(UNASKED, root / name)
    splits = []
    for name, split in zip(folders, ("train", "test"), strict=True):
        classes, beside = _classes_of(_split_folder(root, name, split), root, split)
        splits.append(classes)
        rest.add(beside)
    names = [same_name(name) for name in splits[0]]
    classes_of_all = list(splits[0]) + [name for name in splits[1] if same_name(name) not in names]
    label = {same_name(name): i for i, name in enumerate(classes_of_all)}
    files = [
        [(file, label[same_name(name)]) for name, its in split.items() for file in its] for split in splits
    ]
    return Found(root, classes_of_all, files[0], files[1], rest, said=said)


def _classes_of(folder: Path, root: Path, split: str) -> tuple[dict[str, list[Path]], Listing]:
    """The images of a split by their classes, and what is passed over."""
    if has_own_labels(folder):
        return own_classes(folder, root)
    found = ClassFolders(folder, split)
    return found.images, found.rest


def _names_of_splits(root: Path, asked: Asked) -> tuple[list[str], tuple[str, ...]]:
    """The folders of both splits, and a note for each that has another of the usual names."""
    there = subfolders(root, Listing())
    names, said = [], []
    for split, name in (("train", asked.train), ("test", asked.test)):
        labelled = [one for one in _usual(split, there) if has_own_labels(root / one)]
        if name != split:
            names.append(name)
        elif name in there and len(labelled) == 1 and len(subfolders(root / name, Listing())) < 2:
            names.append(labelled[0])
            said.append(f"the folder {name!r} has no labels, so {labelled[0]!r} is the {split} split")
        else:
            # A link to a folder is one, too, whatever it is called below.
            names.append(name if (root / name).is_dir() else _named(split, there, said, "folder"))
    return names, tuple(said)


def _usual(split: str, there: Sequence[str]) -> list[str]:
    return [one for one in there if one.lower() in USUAL[split]]


def _named(split: str, there: Sequence[str], said: list[str], what: str) -> str:
    """What stands for a split that has its usual name, or another one, which is said."""
    usual = _usual(split, there)
    if split in there or len(usual) != 1:
        return split
    said.append(f"there is no {what} {split!r}, so {usual[0]!r} is the {split} split")
    return usual[0]


def _hashed(root: Path, asked: Asked) -> Found:
    """Of a folder for each class."""
    folders = ClassFolders(root, "test_fraction")
    classes = list(folders.images.values())
    groups = None
    if asked.group == FOLDER:
        groups = {file: file.parent.relative_to(root).as_posix() for its in classes for file in its}
    tested = _tested(root, classes, groups, asked)
    found = Found(root, list(folders.images), [], [], folders.rest)
    for label, files in enumerate(classes):
        found.train += [(file, label) for file in files if file not in tested]
        found.test += [(file, label) for file in files if file in tested]
    return found


def _of_table(asked: Asked, table: LabelTable) -> Found:
    """Of a folder with a table of labels."""
    if not is_folder_alone(asked.path):
        raise Misfit(("data", "labels"), "a table of labels goes with one folder, which data.path is to name")
    root = named_folder(_first(asked.path))
    listed = list_images(root)
    column = None if asked.group == FOLDER else asked.group
    rows, rest = read_labels(table, column, listed.images, root, _names_of_splits(root, asked)[0])
    listed.read_after_all(Path(table.file).name)
    rest.add(Listing([], listed.passed_over))
    images = [image for image in listed.images if image in rows.labels]
    said: tuple[str, ...] = ()
    if asked.test_fraction is None:
        splits, said = _named_in_table(asked, table, rows, images, root, rest)
    else:
        tested = _tested_of_table(asked, table, rows, images, root)
        splits = [[i for i in images if i not in tested], [i for i in images if i in tested]]
    numbers, classes = numbered([[rows.labels[image] for image in split] for split in splits])
    train, test = (
        list(zip(its, number.tolist(), strict=True)) for its, number in zip(splits, numbers, strict=True)
    )
    if NO_ROW in rest.passed_over or NO_LABEL in rest.passed_over:
        said += ("images without labels are left out; labels: none trains on them, beside evaluate_on",)
    return Found(root, list(classes), train, test, rest, said=said + rows.notes())


def _tested_of_table(
    asked: Asked, table: LabelTable, rows: TableRows, images: Sequence[Path], root: Path
) -> set[Path]:
    """The images that `test_fraction` takes for the test split."""
    if table.split is not None:
        raise Misfit(
            ("data", "test_fraction"), "data.labels.split says what is tested; leave out one of the two"
        )
    groups: Mapping[Path, str] | None = None if asked.group is None else rows.groups
    if asked.group == FOLDER:
        groups = {image: os.path.relpath(image.parent, root) for image in images}
    by_class: dict[Label, list[Path]] = {}
    for image in images:
        by_class.setdefault(rows.labels[image], []).append(image)
    return _tested(root, list(by_class.values()), groups, asked)


def _named_in_table(
    asked: Asked, table: LabelTable, rows: TableRows, images: Sequence[Path], root: Path, rest: Listing
) -> tuple[list[list[Path]], tuple[str, ...]]:
    """The images of both splits, which the table or folders name, and notes."""
    if table.split is None:
        names, said = _names_of_splits(root, asked)
        if not all((root / name).is_dir() for name in names):
            raise Misfit(
                ("data", "test_fraction"),
                "nothing says what is tested: set data.test_fraction: 0.1, name the column of the splits in "
                f"data.labels.split, or make the folders {' and '.join(map(printable, names))}",
            )
        where = {i: next((n for n in names if i.is_relative_to(root / n)), "") for i in images}
    else:
        where, there, notes = rows.splits, sorted(set(rows.splits.values())), list[str]()
        names = [
            _named(split, there, notes, "split") if name == split else name
            for split, name in (("train", asked.train), ("test", asked.test))
        ]
        said = tuple(notes)
    for image in images:
        if where[image] not in names:
            rest.skip(OTHER_SPLIT, image)
    return [[image for image in images if where[image] == name] for name in names], said


def _tested(
    root: Path, classes: Sequence[Sequence[Path]], groups: Mapping[Path, str] | None, asked: Asked
) -> set[Path]:
    """The images that are tested; a class of which every one would be keeps one to train on.

    Groups may have images of several classes, and decide alone.
    """
    assert asked.test_fraction is not None
    if groups is not None:
        return _tested_groups(groups, asked)
    tested: set[Path] = set()
    for files in classes:
        hashes = {file: _hash(file.relative_to(root).as_posix()) for file in files}
        limit = min(asked.test_fraction, max(hashes.values()))
        tested |= {file for file, value in hashes.items() if value < limit}
    return tested


def _tested_groups(groups: Mapping[Path, str], asked: Asked) -> set[Path]:
    """The images whose group, by its name, is tested; where there are two groups, each split has one."""
    assert asked.test_fraction is not None
    names = set(groups.values())
    if len(names) < 2 and asked.group is not None:
        one = printable(next(iter(names), "none"), 60)
        raise Misfit(("data", "group"), f"all images are of one group ({one}), which cannot be divided")
    tested = tested_names(names, asked.test_fraction)
    return {file for file, name in groups.items() if name in tested}


def tested_names(names: Collection[str], test_fraction: float) -> set[str]:
    """A share of some names, by a hash of each alone; of two or more, at least one, and not all."""
    hashes = {name: _hash(name) for name in names}
    least = sorted(set(hashes.values()))
    limit = min(max(test_fraction, least[min(1, len(least) - 1)]), least[-1]) if least else 0
    return {name for name, value in hashes.items() if value < limit}


def _split_folder(root: Path, name: str, split: str) -> Path:
    if not (root / name).is_dir():
        folders = (
            ", ".join(printable(name, 60) for name in subfolders(root, Listing())[:8]) or "no folder at all"
        )
        raise Misfit(
            ("data", split),
            f"{shown(root)} has no folder {name!r}; there is: {folders} "
            "(for class folders directly below data.path set data.test_fraction; images without classes go "
            "into one folder)",
        )
    return root / name


def _hash(name: str) -> float:
    """A number in 0..1 that depends on the name alone."""
    encoded = name.encode("utf-8", "surrogateescape")
    return float(int.from_bytes(hashlib.sha256(encoded).digest()[:4], "big") / 2**32)
