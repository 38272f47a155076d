"""Images in folders, one folder a class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._image_labels import LabelTable
from dino_lab.components.data._image_splits import Asked, find
from dino_lab.components.data._labelled import FileOptions, FromFiles, Size
from dino_lab.errors import printable
from dino_lab.imaging.decode import read_image
from dino_lab.imaging.files import listing_rasters, shown
from dino_lab.imaging.report import passed_over
from dino_lab.registry import Flat, register

LONGEST_NAME = 100  # characters of a class's name


@register("data", "image_folder")
class ImageFolder(FromFiles):
    """Images of `path/train/<class>/` and `path/test/<class>/`, or of `path/<class>/` with `test_fraction`.

    Images that lie in no folder of a class have no labels; `labels: none` says so of any folder. Neither have
    images of several folders (a list), of a pattern (`photos/**/*.jpg`) and of a text file with a path in
    each line. They need `test_fraction`, or folders `train` and `test`. Evaluators that compare labels are
    then left out.

    `labels` may also be a table beside the images, whose columns are named.

    Where there is no folder `test`, one called val, valid or validation is taken for it, with a line.

    With `test_fraction` an image belongs to the test split if a hash of its path below `path` says so: adding
    images moves no other one, and a class of one image is trained on. Classes are numbered in the order of
    their names, those that only the test split has last. A file is an image by its content, whatever its
    name; links are followed; folders without an image are no classes. What is passed over is reported.

    `group` keeps images together: with `folder`, those of one folder, such as the frames of a video, are all
    trained on or all tested.

    Tiny-ImageNet and ImageNet are read as they are unpacked: labels of a split whose images lie in one folder
    are read from `val_annotations.txt`, or from the development kit beside it.
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
            Literal["folders", "none"] | LabelTable,
            Field(description="classes are folders, images have none, or a table beside them has them"),
        ] = "folders",
        group: Annotated[
            str | None,
            Field(
                min_length=1,
                description="`folder` or a column of the table, which `test_fraction` keeps together",
            ),
        ] = None,
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        with listing_rasters(options.channels is not None):
            files = find(Asked(path, train, test, test_fraction, labels, group))
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
