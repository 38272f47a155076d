"""Images in folders, one folder a class."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._class_folders import ClassFolders, has_loose_images_alone, subfolders
from dino_lab.components.data._labelled import FileOptions, FromFiles, Size
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import OnBadImage
from dino_lab.components.data._unlabelled import Pool, is_folder_alone, pool
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.decode import read_image
from dino_lab.imaging.files import DEAD, Listing, listing_rasters, shown
from dino_lab.imaging.report import passed_over, same_name
from dino_lab.registry import Flat, register

UNASKED = "folder that is neither data.train nor data.test"
# Names that folders of splits have, where they are not called `train` and `test`.
USUAL = {"train": ("training",), "test": ("val", "valid", "validation", "testing", "dev", "eval")}
UNLABELLED = "unlabelled"  # the one class of images without labels
LONGEST_NAME = 100  # characters of a class's name


@register("data", "image_folder")
class ImageFolder(FromFiles):
    """Images of `path/train/<class>/` and `path/test/<class>/`, or of `path/<class>/` with `test_fraction`.

    Images that lie in no folder of a class have no labels; `labels: none` says so of any folder. Neither have
    images of several folders (a list), of a pattern (`photos/**/*.jpg`) and of a text file with a path in
    each line. They need `test_fraction`, or folders `train` and `test`. Evaluators that compare labels are
    then left out.

    Where there is no folder `test`, one called val, valid or validation is taken for it, with a line.

    With `test_fraction` an image belongs to the test split if a hash of its path below `path` says so: adding
    images moves no other one, and a class of one image is trained on. Classes are numbered in the order of
    their names, those that only the test split has last. A file is an image by its content, whatever its
    name; links are followed; folders without an image are no classes. What is passed over is reported.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[
            str | Annotated[list[str], Field(min_length=1)],
            Field(
                description="folder of the splits, classes or images; without labels also others: see above"
            ),
        ],
        size: Size,
        train: Annotated[str, Field(description="folder of the training split, below `path`")] = "train",
        test: Annotated[str, Field(description="folder of the test split, below `path`")] = "test",
        test_fraction: Annotated[
            float | None,
            Field(
                gt=0,
                lt=1,
                description="share of the images that is the test split; null: the folder `test`",
            ),
        ] = None,
        labels: Annotated[
            Literal["folders", "none"],
            Field(description="classes are folders, or images have none"),
        ] = "folders",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        with listing_rasters(options.channels is not None):
            files = _find(path, train, test, test_fraction, labels)
        files.check(options.on_bad_image)
        root, self.labelled = files.root, files.labelled
        self.passed_over = passed_over(root, files.rest.passed_over)
        self.notes = files.notes()
        super().__init__(
            device,
            _Files(root, files.train),
            _Files(root, files.test),
            tuple(printable(name, LONGEST_NAME) for name in files.classes),
            size=size,
            **options.model_dump(),
        )


class _Files:
    """One file an image."""

    def __init__(self, root: Path, files: list[tuple[Path, int]]) -> None:
        self.root, self.files = str(root), [str(file) for file, _ in files]
        self.labels = torch.tensor([label for _, label in files])

    def open(self, index: int) -> Image.Image:
        return read_image(Path(self.files[index]))

    def where(self, index: int) -> str:
        return shown(self.files[index])

    def name(self, index: int) -> str:
        return os.path.relpath(self.files[index], self.root)


@dataclass
class _Found:
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


def _find(path: str | list[str], train: str, test: str, test_fraction: float | None, labels: str) -> _Found:
    if labels == "folders" and is_folder_alone(path):
        root = named_folder(path if isinstance(path, str) else path[0])
        if not has_loose_images_alone(root):
            return _splits(root, train, test) if test_fraction is None else _hashed(root, test_fraction)
    if test_fraction is not None:
        return _unlabelled(pool(path), test_fraction)
    root = Path(path if isinstance(path, str) else path[0]).expanduser()
    names, said = _names_of_splits(root, train, test) if is_folder_alone(path) else ([], ())
    if not names or not all((root / name).is_dir() for name in names):
        raise Misfit(
            ("data", "test_fraction"),
            "images without labels are divided by it: set data.test_fraction: 0.1, or make the folders "
            f"{printable(train, 60)} and {printable(test, 60)}",
        )
    splits = [pool(str(root / name)) for name in names]
    rest = splits[0].rest
    rest.add(splits[1].rest)
    files = [[(file, 0) for file in split.images] for split in splits]
    return _Found(root, [UNLABELLED], files[0], files[1], rest, labelled=False, said=said)


def _unlabelled(found: Pool, test_fraction: float) -> _Found:
    """A share of the images for each split, by the hash of their names; each has one where there are two."""
    hashes = {file: _hash(name) for file, name in found.images.items()}
    least = sorted(hashes.values())
    limit = min(max(test_fraction, least[min(1, len(least) - 1)]), least[-1])
    train = [(file, 0) for file, value in hashes.items() if value >= limit]
    test = [(file, 0) for file, value in hashes.items() if value < limit]
    return _Found(found.root, [UNLABELLED], train, test, found.rest, labelled=False)


def _splits(root: Path, train: str, test: str) -> _Found:
    """Of a folder for each split, with a folder for each class."""
    rest = Listing()
    folders, said = _names_of_splits(root, train, test)
    others = set(subfolders(root, rest)) - {part for name in folders for part in Path(name).parts[:1]}
    for name in sorted(others):
        rest.skip(UNASKED, root / name)
    splits = [
        ClassFolders(_split_folder(root, name, split), split)
        for name, split in zip(folders, ("train", "test"), strict=True)
    ]
    for split in splits:
        rest.add(split.rest)
    names = [same_name(name) for name in splits[0].images]
    classes = list(splits[0].images) + [name for name in splits[1].images if same_name(name) not in names]
    label = {same_name(name): i for i, name in enumerate(classes)}
    files = [
        [(file, label[same_name(name)]) for name, its in split.images.items() for file in its]
        for split in splits
    ]
    return _Found(root, classes, files[0], files[1], rest, said=said)


def _names_of_splits(root: Path, train: str, test: str) -> tuple[list[str], tuple[str, ...]]:
    """The folders of both splits, and a note for each that has another of the usual names."""
    names, said = [], []
    for split, name in (("train", train), ("test", test)):
        usual = [one for one in subfolders(root, Listing()) if one.lower() in USUAL[split]]
        if name == split and not (root / name).is_dir() and len(usual) == 1:
            said.append(f"there is no folder {name!r}, so {usual[0]!r} is the {split} split")
            name = usual[0]
        names.append(name)
    return names, tuple(said)


def _hashed(root: Path, test_fraction: float) -> _Found:
    """Of a folder for each class; a class of which every image would be tested keeps one to train on."""
    folders = ClassFolders(root, "test_fraction")
    found = _Found(root, list(folders.images), [], [], folders.rest)
    for label, files in enumerate(folders.images.values()):
        hashes = {file: _hash(file.relative_to(root).as_posix()) for file in files}
        limit = min(test_fraction, max(hashes.values()))
        found.train += [(file, label) for file in files if hashes[file] >= limit]
        found.test += [(file, label) for file in files if hashes[file] < limit]
    return found


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
