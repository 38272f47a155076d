"""Photographs with segmented or boxed objects, laid out as the PASCAL VOC challenges have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._labelled import FileOptions, Size
from dino_lab.components.data._masked_files import FromMaskedFiles
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import Split
from dino_lab.errors import Misfit, UserError, first_line
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
class Voc(FromMaskedFiles):
    """Photographs with several segmented objects each, in the layout of PASCAL VOC 2007 to 2012.

    `path` holds JPEGImages, SegmentationObject, SegmentationClass and ImageSets/Segmentation, where `train`
    and `test` name the lists of images without their `.txt`; `train: null` reads no training split. The label
    of an image is the class of its largest object. Boxes are those around the masks; 255 is void and counts
    as nothing. An image without an object, or with a mask of another size, is refused.

    With `objects: boxes` all images of the detection task are read, whose lists are in ImageSets/Main and
    whose boxes in Annotations; an object is all of its box, and those over larger ones lie on top.
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
        objects: Annotated[
            Literal["masks", "boxes"],
            Field(description="what an object is: its mask, or its box, which more images have"),
        ] = "masks",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = named_folder(path)
        asked: dict[Split, str | None] = {"train": train, "test": test}
        kind = _Files if objects == "masks" else _Boxes
        sources = {key: kind(root, name, key) for key, name in asked.items() if name is not None}
        super().__init__(device, sources, tuple(CLASSES), size=size, options=options)


class _Files:
    """The images that a list of ImageSets names, and the masks of their objects."""

    lists = "Segmentation"

    def __init__(self, root: Path, name: str, key: str) -> None:
        self.root, self.names = root, _names(root / "ImageSets" / self.lists, name, key)
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


class _Boxes(_Files):
    """The same of the detection task, whose objects are boxes."""

    lists = "Main"

    def open_objects(self, index: int) -> Image.Image:
        return self._drawn(index, lambda number, name: number)

    def open_classes(self, index: int) -> Image.Image:
        return self._drawn(index, lambda number, name: name + 1)

    def _drawn(self, index: int, value: Callable[[int, int], int]) -> Image.Image:
        """A value in each box, by the object's number from 1 on and its class; small over large boxes."""
        width, height = self.open(index).size
        values = np.zeros((height, width), np.uint8)
        for number, (name, (x0, y0, x1, y1)) in enumerate(self._boxes(index), 1):
            values[y0:y1, x0:x1] = value(number, name)
        return Image.fromarray(values)

    def _label(self, index: int) -> int:
        return self._boxes(index)[0][0]

    def _boxes(self, index: int) -> list[tuple[int, tuple[int, ...]]]:
        """Class and box (x0 y0 x1 y1, the last two exclusive) of each object, the largest first."""
        file = self.root / "Annotations" / f"{self.names[index]}.xml"
        try:
            found = [_box(one) for one in ElementTree.parse(file).getroot().iter("object")]
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise UserError(f"{shown(file)}: its boxes cannot be read ({first_line(error)})") from error
        if not found:
            raise UserError(f"{shown(file)}: has no object in it")
        return sorted(found, key=lambda one: -(one[1][2] - one[1][0]) * (one[1][3] - one[1][1]))


def _box(one: ElementTree.Element) -> tuple[int, tuple[int, ...]]:
    """Class and box of an object; pixels of a file are counted from 1, and its box has all of its edges."""
    name = one.findtext("name", "").strip()
    if name not in CLASSES:
        raise ValueError(f"an object of class {name!r}")
    keys = ("xmin", "ymin", "xmax", "ymax")
    x0, y0, x1, y1 = (round(float(one.findtext(f"bndbox/{key}", ""))) for key in keys)
    if not (0 < x0 <= x1 and 0 < y0 <= y1):
        raise ValueError(f"a box from {x0}, {y0} to {x1}, {y1}")
    return CLASSES.index(name), (x0 - 1, y0 - 1, x1, y1)


def _names(folder: Path, name: str, key: str) -> list[str]:
    file = folder / f"{name}.txt"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in folder.glob("*.txt"))) or "no list"
        raise Misfit(("data", key), f"{file} does not exist; there is: {there}")
    lines = file.read_text(encoding="utf-8").splitlines()
    names = [line.split()[0] for line in lines if line.strip()]  # lists of one class also say -1, 0 or 1
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
