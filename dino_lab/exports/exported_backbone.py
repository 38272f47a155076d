"""What is exported: a network that takes images in 0..1, and a few images to try it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.evaluation.encoder import in_unit_range
from dino_lab.network import Network
from dino_lab.runs.backbone_file import description
from dino_lab.runs.open import SavedRun


@dataclass(frozen=True)
class ExportedBackbone:
    """A backbone with its normalisation, on the CPU, in float32 and evaluation mode."""

    backbone: nn.Module
    description: dict[str, Any]  # what a file says of the backbone
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images: Tensor  # float32 [N, C, H, W] in 0..1, from the test split, as evaluators see them
    features: Tensor  # float32 [N, D] of them

    @property
    def name(self) -> str:
        """Of the backbone in the spec."""
        name: str = self.description["backbone"]["name"]
        return name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def whole(self) -> nn.Module:
        """Images in 0..1 to features, as one module."""
        return Whole(self.backbone, self.mean, self.std).eval()


class Whole(nn.Module):
    """Normalisation and backbone."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Float32 [N, C, H, W] in 0..1 to [N, D]."""
        return self.backbone((images - self.mean) / self.std)


def backbone_to_export(run: SavedRun, of: str, count: int = 4) -> ExportedBackbone:
    """The backbone of the teacher or the student, and at most `count` test images with their features."""
    network: Network = run.backbone(of).eval()
    images, _ = next(iter(run.data.test(count)))
    x = in_unit_range(images, run.size)
    with torch.no_grad():
        features = network.encode(x)
    return ExportedBackbone(
        network.backbone,
        description(run.spec, run.augment),
        tuple(network.mean.flatten().tolist()),
        tuple(network.std.flatten().tolist()),
        x,
        features,
    )
