"""Classes of cells and of pixels, and their scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.types import VOID


def cell_classes(truth: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The most frequent class of the pixels of each cell: uint8 [N, H, W] to int64 [N, h, w].

    Void pixels do not count; a cell of void pixels alone is VOID. Among equals the lowest wins.
    """
    # An image at a time: a number for each pixel and class is more than large images leave room for.
    return torch.cat([_cells_of(image[None], grid, classes) for image in truth])


def _cells_of(truth: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    known = F.one_hot(torch.where(truth == VOID, classes, truth.long()), classes + 1)[..., :classes]
    shares = F.interpolate(known.movedim(-1, 1).double(), grid, mode="area")  # [N, classes, h, w]
    return torch.where(shares.sum(1) > 0, shares.argmax(1), VOID)


def pixel_classes(scores: Tensor, size: int) -> Tensor:
    """Classes int64 [N, H, W] of pixels from scores of cells [N, classes, h, w], bilinear between them."""
    return F.interpolate(scores, (size, size), mode="bilinear", align_corners=False).argmax(1)


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """How many pixels of class i were said to be of class j, int64 [classes, classes], void left out."""
    known = truth != VOID
    pairs = truth[known].long() * classes + found[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Intersection over union of each class over all pixels, mean over the classes that the truth has."""
    hits, there = counts.diag().double(), counts.sum(1)
    return (hits / (there + counts.sum(0) - hits))[there > 0].mean().item()


def accuracy(counts: Tensor) -> float:
    """The share of pixels whose class is right."""
    return (counts.trace() / counts.sum()).item()
