"""Photographs with segmented objects, laid out as the PASCAL VOC challenges have them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from dino_lab.components.data._labelled import FileOptions, FromFiles, Size
from dino_lab.components.data._masks import Masks
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import Split
from dino_lab.errors import Misfit, UserError
from dino_lab.imaging.decode import read_image
from dino_lab.imaging.files import shown
from dino_lab.registry import Flat, register
from dino_lab.types import VOID

CLASSES = [
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
]


@register("data", "voc")
class Voc(FromFiles):
    """Photographs with several segmented objects each, in the layout of PASCAL VOC 2007 to 2012.

    `path` holds JPEGImages, SegmentationObject, SegmentationClass and ImageSets/Segmentation, where `train`
    and `test` name the lists of images without their `.txt`; `train: null` reads no training split. The label
    of an image is the class of its largest object. Boxes are those around the masks; 255 is void and counts
    as nothing. An image without an object, or with a mask of another size, is refused.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder that holds JPEGImages, ImageSets and the masks")],
        size: Size,
        train: Annotated[
            str | None, Field(description="list of training images, without `.txt`; null: only evaluated on")
        ] = "train",
        test: Annotated[str, Field(description="list of test images, without `.txt`")] = "val",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = named_folder(path)
        train_files = None if train is None else _Files(root, train, "train")
        test_files = _Files(root, test, "test")
        super().__init__(
            device,
            train_files,
            test_files,
            tuple(CLASSES),
            size=size,
            **options.model_dump(),
        )
        splits = ("train", train_files, self._train), ("test", test_files, self._test)
        self._masks = {
            n: Masks(files, kept, size, "numbered", self.reading)
            for n, files, kept in splits
            if files is not None
        }

    def annotated(self, split: Split, indices: Tensor) -> tuple[Tensor, ...]:
        """Images, labels, object masks, part masks and boxes: see the protocol; all objects are one part."""
        return self._of(split).annotated(indices)

    def segmented(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The objects one by one, and their classes: see the protocol."""
        return self._of(split).segmented(indices)

    def _of(self, split: Split) -> Masks:
        if split not in self._masks:
            raise UserError("data voc: there is no training split (data.train: null)")
        return self._masks[split]


class _Files:
    """The images that a list of ImageSets/Segmentation names."""

    def __init__(self, root: Path, name: str, key: str) -> None:
        self.root, self.names = root, _names(root, name, key)
        self.labels = torch.tensor([self._label(i) for i in range(len(self.names))])

    def open(self, index: int) -> Image.Image:
        return read_image(self._image(index))

    def open_objects(self, index: int) -> Image.Image:
        return read_image(self._mask(index, "Object"))

    def open_classes(self, index: int) -> Image.Image:
        return read_image(self._mask(index, "Class"))

    def where(self, index: int) -> str:
        return shown(self._image(index))

    def name(self, index: int) -> str:
        return self.names[index]

    def _image(self, index: int) -> Path:
        return self.root / "JPEGImages" / f"{self.names[index]}.jpg"

    def _mask(self, index: int, kind: str) -> Path:
        return self.root / f"Segmentation{kind}" / f"{self.names[index]}.png"

    def _label(self, index: int) -> int:
        """The class of the largest object."""
        files = self._mask(index, "Object"), self._mask(index, "Class")
        objects, classes = (_values(file) for file in files)
        if objects.shape != classes.shape:
            raise UserError(
                f"{files[0]}: {objects.shape[::-1]} pixels, but {files[1]} has {classes.shape[::-1]}"
            )
        counts = np.bincount(objects[(objects > 0) & (objects != VOID)])
        if not len(counts):
            raise UserError(f"{files[0]}: has no object in it")
        name = int(np.bincount(classes[objects == counts.argmax()]).argmax())
        if not 1 <= name <= len(CLASSES):
            raise UserError(f"{files[1]}: its largest object is of class {name}, not 1 to {len(CLASSES)}")
        return name - 1


def _names(root: Path, name: str, key: str) -> list[str]:
    folder = root / "ImageSets" / "Segmentation"
    file = folder / f"{name}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "no list"
        raise Misfit(("data", key), f"{file} does not exist; there is: {there}")
    names = file.read_text(encoding="utf-8").split()
    if not names:
        raise UserError(f"{file}: names no image")
    return names


def _values(file: Path) -> np.ndarray:
    """The values [H, W] of a grey or palette mask."""
    try:
        mask = read_image(file)
        values = np.asarray(mask)
    except Exception as error:  # as many kinds as Pillow has plug-ins
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: its mask cannot be used ({reason})") from error
    if mask.mode not in ("L", "P"):
        raise UserError(f"{file}: its mask cannot be used (its pixels are {mask.mode}, not grey or palette)")
    return values
