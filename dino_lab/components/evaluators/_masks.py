"""Agreement of masks and objects, and masks that ignore the image, as baselines."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.types import VOID

FLOOR_NAMES = ("centre square", "whole image")  # masks that ignore the image, as floors of the others

TestImages = Annotated[int | None, Field(gt=0, description="test images, the first of the split; null: all")]
TestPixels = Annotated[
    int | None,
    Field(gt=0, description="side of the images that the network is shown, in pixels; null: as the run's"),
]
Pictures = Annotated[int, Field(gt=0, description="images that are drawn, the first of the split")]


def jaccard(masks: Tensor, objects: Tensor) -> Tensor:
    """Intersection over union of masks bool [M, H, W] and each object of a map uint8 [H, W]: [objects, M].

    Void pixels are in neither; to one object the others are background.
    """
    known = objects != VOID
    names = objects[known].unique()
    truth = objects[known] == names[names > 0][:, None]  # [objects, pixels]
    found = masks[:, known]  # [M, pixels]
    both = truth.double() @ found.double().T
    either = truth.sum(1, keepdim=True) + found.sum(1) - both
    return both / either


def images_in_words(of: str, images: int | None) -> str:
    """The network and the images, in the words of a protocol."""
    count = "all" if images is None else f"first {images}"
    return f"of the {of} in evaluation mode, {count} images of the test split"


def pixels_in_words(pixels: int | None) -> str:
    """The size of the images, in the words of a protocol."""
    return f"pixels {'as the run' if pixels is None else pixels}"


def centre_box(size: int) -> tuple[int, int, int, int]:
    """The square in the middle that takes half of the area of an image of `size` pixels a side."""
    margin = round(size * (1 - math.sqrt(0.5)) / 2)
    return margin, margin, size - margin, size - margin


def box_mask(box: tuple[int, int, int, int], size: int) -> Tensor:
    """A box (x0, y0, x1, y1, the last two exclusive) as a mask bool [size, size]."""
    mask = torch.zeros(size, size, dtype=torch.bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask
