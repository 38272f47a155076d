"""The training images nearest to some test images."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dino_lab.reports.page.gallery import Gallery, tile
from dino_lab.reports.page.samples import Samples

NEIGHBOURS = 5


@dataclass(frozen=True)
class Neighbours:
    """What is shown, and which share of the neighbours of all sampled test images has the image's label."""

    gallery: Gallery
    share_right: float
    among: int


def neighbours(samples: Samples) -> Neighbours:
    """Each shown test image and its nearest in the bank, by cosine."""
    test, bank = samples.test, samples.bank
    cosine, nearest = nearest_in(test.features, bank.features, NEIGHBOURS)
    right = bank.labels[nearest] == test.labels[:, None]  # [N, k]
    rows = []
    for i in samples.shown.tolist():
        found = [
            tile(
                bank.images[at],
                f"{samples.names[int(bank.labels[at])]}, {value:.3f}",
                "right" if right[i, j] else "wrong",
            )
            for j, (at, value) in enumerate(zip(nearest[i].tolist(), cosine[i].tolist(), strict=True))
        ]
        rows.append([tile(test.images[i], samples.names[int(test.labels[i])]), *found])
    headings = ("test image", *(f"{j + 1}." for j in range(nearest.shape[1])))
    return Neighbours(Gallery(headings, rows), right.double().mean().item(), len(test))


def nearest_in(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and positions [N, k] of the nearest of unit-length features."""
    found = (queries @ bank.T).topk(min(k, len(bank)))
    return found.values, found.indices
