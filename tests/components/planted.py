"""A network and data whose attention, tokens and objects are known, for the evaluators of where things are."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.types import BackboneOutput


class Planted(nn.Module):
    """Attention is the mean of the pixels of a cell, one head a channel; tokens are the same means."""

    dim = 3

    def __init__(self, cell: int, *, attention: bool = True) -> None:
        super().__init__()
        self.cell, self._attention = cell, attention

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        cells = F.avg_pool2d(images, self.cell)
        return BackboneOutput(self(images), None, cells, cells if self._attention else None)


class Drawn:
    """Images, objects and classes as they are given."""

    channels = 3

    def __init__(self, images: Tensor, objects: Tensor, classes: Tensor | None = None) -> None:
        self.images, self.objects = images, objects
        self.kinds = objects if classes is None else classes
        self.size, self.test_images = images.shape[-1], len(images)

    def annotated(self, split: str, indices: Tensor) -> tuple[Tensor, ...]:
        assert split == "test"
        masks = (self.objects[indices] > 0) & (self.objects[indices] < 255)
        nothing = torch.zeros(len(indices), dtype=torch.int64)
        boxes = torch.zeros(len(indices), 4, dtype=torch.int64)
        return self.images[indices], nothing, masks, masks.to(torch.uint8), boxes

    def segmented(self, split: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.objects[indices], self.kinds[indices]


def encoder(size: int, cell: int = 4, *, attention: bool = True) -> Encoder:
    return Encoder(Network(Planted(cell, attention=attention), nn.Identity()), size, nullcontext)


def noise(count: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
