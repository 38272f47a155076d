"""Images in folders, one folder a class."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._labelled import FileOptions, FromFiles, Size
from dino_lab.errors import UserError
from dino_lab.imaging.decode import SUFFIXES, image_files
from dino_lab.registry import Flat, register


@register("data", "image_folder")
class ImageFolder(FromFiles):
    """Images of `path/train/<class>/` and `path/test/<class>/`, or of `path/<class>/` with `test_fraction`.

    With `test_fraction` an image belongs to the test split if a hash of its path below `path` says so: adding
    images moves no other one. Classes are numbered in the order of their names; files whose names do not end
    like an image's are passed over.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder that holds the two splits, or the class folders")],
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
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = Path(path).expanduser()
        if not root.is_dir():
            raise UserError(f"data.path: {path} is not a folder")
        if test_fraction is None:
            names = _class_names(_split_folder(root, train, "train"))
            files = _list(root / train, names)
            test_files = _list(_split_folder(root, test, "test"), names)
        else:
            names = _class_names(root)
            everything = _list(root, names)
            test_files = [item for item in everything if _hash(root, item[0]) < test_fraction]
            files = [item for item in everything if _hash(root, item[0]) >= test_fraction]
        for split, some in (("training", files), ("test", test_files)):
            if not some:
                raise UserError(f"{root}: the {split} split holds no image ({', '.join(sorted(SUFFIXES))})")
        super().__init__(
            device,
            _Files(files),
            _Files(test_files),
            names,
            size=size,
            **options.model_dump(),
        )


class _Files:
    """One file an image."""

    def __init__(self, files: list[tuple[Path, int]]) -> None:
        self.files = [str(file) for file, _ in files]
        self.labels = torch.tensor([label for _, label in files])

    def open(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(Path(self.files[index]).read_bytes()))

    def where(self, index: int) -> str:
        return self.files[index]


def _split_folder(root: Path, name: str, split: str) -> Path:
    if not (root / name).is_dir():
        folders = ", ".join(_folders(root)[:8]) or "no folder at all"
        raise UserError(
            f"data.{split}: {root} has no folder {name!r}; there is: {folders} "
            "(for class folders directly below data.path set data.test_fraction)"
        )
    return root / name


def _class_names(folder: Path) -> tuple[str, ...]:
    names = _folders(folder)
    if not names:
        raise UserError(f"{folder}: holds no class folders")
    return tuple(names)


def _folders(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir() if item.is_dir() and not item.name.startswith("."))


def _list(folder: Path, names: tuple[str, ...]) -> list[tuple[Path, int]]:
    """Files and labels below the class folders, in the order of their paths."""
    unknown = sorted(set(_folders(folder)) - set(names))
    if unknown:
        raise UserError(f"{folder / unknown[0]}: the training split has no class of this name")
    return [(file, label) for label, name in enumerate(names) for file in image_files(folder / name)]


def _hash(root: Path, file: Path) -> float:
    """A number in 0..1 that depends on the path below `root` alone."""
    digest = hashlib.sha256(file.relative_to(root).as_posix().encode()).digest()
    return float(int.from_bytes(digest[:4], "big") / 2**32)
