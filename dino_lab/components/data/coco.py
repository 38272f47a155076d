"""Photographs with outlined objects, laid out as COCO has them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._labelled import FileOptions, Size
from dino_lab.components.data._masked_files import FromMaskedFiles
from dino_lab.components.data._outlined_masks import mask_of
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import Split
from dino_lab.errors import Misfit, UserError, first_line, printable
from dino_lab.imaging.decode import Pixels, read_image
from dino_lab.imaging.files import shown
from dino_lab.imaging.report import EXAMPLES, PassedOver
from dino_lab.registry import Flat, register
from dino_lab.types import VOID

SPLIT = "{split}"


@register("data", "coco")
class Coco(FromMaskedFiles):
    """Photographs with boxes and masks of objects, in COCO's format (Lin et al., arXiv 1405.0312).

    The label of an image is the category of its largest object; images without an object are left out, and
    counted. `labels: none` trains on all images, of which none has a label. Masks come from polygons or run
    lengths, and where there are none from boxes; objects lie over larger ones, and crowds are void.

    `train` and `test` stand for `{split}` in `annotations` and `images`; the images may also lie below
    `images/`. Of an image with more than 254 objects masks are refused.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder that holds the annotations and the images")],
        size: Size,
        train: Annotated[
            str | None, Field(description="name of the training split; null: only evaluated on")
        ] = "train2017",
        test: Annotated[str, Field(description="name of the test split")] = "val2017",
        annotations: Annotated[
            str, Field(description="file of a split's objects, below `path`")
        ] = "annotations/instances_{split}.json",
        images: Annotated[str, Field(description="folder of a split's images, below `path`")] = SPLIT,
        labels: Annotated[
            Literal["largest", "none"],
            Field(description="category of the largest object, or no labels"),
        ] = "largest",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = named_folder(path)
        self.labelled = labels == "largest"
        layout = _Layout(root, annotations, images)
        asked: dict[Split, str | None] = {"train": train, "test": test}
        found = {key: layout.read(name, key) for key, name in asked.items() if name is not None}
        categories = _categories(list(found.values()))
        sources = {
            key: _Images(its, list(categories), None if self.labelled else 0) for key, its in found.items()
        }
        self.passed_over = _without_objects(list(sources.values()))
        names = tuple(categories.values())
        super().__init__(device, sources, names, size=size, options=options)


class _Object(NamedTuple):
    """Category, whether it is a crowd, and outline of an object; where there is none its box."""

    category: int
    crowd: bool
    outline: Any

    @classmethod
    def of(cls, one: Mapping[str, Any]) -> Self:
        """That of an annotation."""
        outline = one.get("segmentation")
        if not outline:
            x, y, width, height = map(float, one["bbox"])
            outline = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        return cls(int(one["category_id"]), bool(one.get("iscrowd")), outline)


@dataclass
class _Instances:
    """A split's images and objects."""

    file: Path
    folder: Path  # of the images
    categories: dict[int, str]
    images: list[tuple[int, str]]  # id and file name
    objects: dict[int, list[_Object]]  # by the image's id, the largest first


@dataclass(frozen=True)
class _Layout:
    """Where the files of a split lie."""

    root: Path
    annotations: str
    images: str

    def read(self, name: str, key: str) -> _Instances:
        """The annotations of a split; a Misfit where there are none, a UserError where they are damaged."""
        file = self.root / self.annotations.replace(SPLIT, name)
        if not file.is_file():
            there = ", ".join(sorted(path.name for path in file.parent.glob("*.json"))) or "no such file"
            raise Misfit(("data", key), f"{shown(file)} does not exist; there is: {printable(there, 300)}")
        below = self.images.replace(SPLIT, name)
        folders = [self.root / below, self.root / "images" / below]
        folder = next((its for its in folders if its.is_dir()), None)
        if folder is None:
            raise Misfit(("data", "images"), f"{shown(folders[0])} does not exist")
        try:
            content = json.loads(file.read_bytes())
            objects = defaultdict(list)
            for one in sorted(content["annotations"], key=_area, reverse=True):
                objects[int(one["image_id"])].append(_Object.of(one))
            categories = {int(one["id"]): str(one["name"]) for one in content["categories"]}
            images = [(int(one["id"]), str(one["file_name"])) for one in content["images"]]
            unknown = {int(one["category_id"]) for one in content["annotations"]} - categories.keys()
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = first_line(error)
            raise UserError(f"{shown(file)}: no file of COCO's instances ({reason})") from error
        if unknown:
            raise UserError(
                f"{shown(file)}: has an object of category {min(unknown)}, which it does not name"
            )
        return _Instances(file, folder, categories, images, dict(objects))


def _area(one: Mapping[str, Any]) -> float:
    """Pixels of an object, which the format states; of its box where it does not."""
    if "area" in one:
        return float(one["area"])
    return float(one["bbox"][2]) * float(one["bbox"][3])


def _categories(splits: Sequence[_Instances]) -> dict[int, str]:
    """Names by number, ascending; a UserError where two files give a number another name."""
    found: dict[int, str] = {}
    for split in splits:
        for number, name in split.categories.items():
            if found.setdefault(number, name) != name:
                raise UserError(
                    f"{shown(split.file)}: category {number} is {name}, and {found[number]} in "
                    f"{shown(splits[0].file)}"
                )
    return dict(sorted(found.items()))


def _without_objects(splits: Sequence[_Images]) -> tuple[PassedOver, ...]:
    names = [name for split in splits for name in split.left_out]
    shown_names = tuple(printable(name, 200) for name in names[:EXAMPLES])
    return (PassedOver("image without an object", len(names), shown_names),) if names else ()


class _Images:
    """The images of a split, and their objects: of label `label`, or of that of their largest object."""

    def __init__(self, split: _Instances, categories: Sequence[int], label: int | None) -> None:
        self.folder, self.file = split.folder, split.file
        self.names: list[str] = []
        self.left_out: list[str] = []  # images without an object, where that gives the label
        self.objects: list[str] = []  # JSON: objects as Python has them take ten times as much memory
        labels: list[int] = []
        numbers = {category: i for i, category in enumerate(categories)}
        for image, name in split.images:
            its = split.objects.get(image, [])
            single = [one for one in its if not one.crowd]
            if label is None and not single:
                self.left_out.append(name)
                continue
            labels.append(numbers[single[0].category] if label is None else label)
            self.names.append(name)
            crowds_first = sorted(its, key=lambda one: not one.crowd)
            self.objects.append(
                json.dumps([one._replace(category=numbers[one.category]) for one in crowds_first])
            )
        self.labels = torch.tensor(labels, dtype=torch.int64)

    def open(self, index: int) -> Image.Image:
        return read_image(self.folder / self.names[index])

    def open_objects(self, index: int) -> Image.Image:
        return Image.fromarray(self._drawn(index)[0])

    def open_classes(self, index: int) -> Image.Image:
        return Image.fromarray(self._drawn(index)[1])

    def where(self, index: int) -> str:
        return shown(self.folder / self.names[index])

    def name(self, index: int) -> str:
        return self.names[index]

    def _drawn(self, index: int) -> tuple[Pixels, Pixels]:
        """Numbers of objects and their classes [H, W]: see `Masks`; small over large, all over crowds."""
        width, height = self.open(index).size
        objects, classes = np.zeros((height, width), np.uint8), np.zeros((height, width), np.uint8)
        number = 0
        for category, crowd, outline in json.loads(self.objects[index]):
            mask = mask_of(outline, width, height)
            number += not crowd
            if max(number, category + 1) >= VOID:
                raise ValueError(f"more than {VOID - 1} objects or classes")
            objects[mask], classes[mask] = (VOID, VOID) if crowd else (number, category + 1)
        return objects, classes
