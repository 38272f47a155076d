"""Horizontal flips."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, chosen
from dino_lab.kernels.crops.resize import flip
from dino_lab.registry import register


@register("operation", "flip")
class Flip(GeometricAugmentationBase2D):
    """Left and right exchanged."""

    step = "flip"
    _compute_matrix_lazily = True

    def __init__(
        self,
        pixels: int,
        *,
        p: Probabilities = 0.5,
    ) -> None:
        super().__init__(p=1.0)
        self.probability = p

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Which are flipped, bool [N]."""
        return {"flipped": chosen(self.probability, batch_shape[0])}

    def compute_transformation(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> Tensor:
        """Matrices [N, 3, 3] from a pixel's place to its place after it, (x, y, 1)."""
        flipped = params["flipped"].to(input)
        matrix = torch.eye(3).to(input).repeat(len(flipped), 1, 1)
        matrix[:, 0, 0] = 1 - 2 * flipped
        matrix[:, 0, 2] = flipped * (input.shape[-1] - 1)
        return matrix

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] to the same, some of them mirrored."""
        return flip(input, params["flipped"].to(input.device))
