"""Rotations about the middle of a crop."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from kornia.geometry.transform import get_rotation_matrix2d
from pydantic import Field
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, between, chosen
from dino_lab.kernels.crops.rotate import rotate
from dino_lab.registry import register


@register("operation", "rotate")
class Rotate(GeometricAugmentationBase2D):
    """Rotation about the middle, bilinear; what lies outside is mirrored at the edges."""

    step = "rotate"
    _compute_matrix_lazily = True

    def __init__(
        self,
        pixels: int,
        *,
        degrees: Annotated[
            float, Field(ge=0, le=180, description="largest angle of rotation to either side, in degrees")
        ],
        p: Probabilities = 1.0,
    ) -> None:
        super().__init__(p=1.0)
        self.degrees, self.probability = degrees, p

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Angles [N] in degrees, counter-clockwise."""
        N = batch_shape[0]
        angle = between(-self.degrees, self.degrees, torch.rand(N))
        # What happens always needs no number that says so.
        return {"angle": angle if self.probability == 1 else angle * chosen(self.probability, N)}

    def compute_transformation(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> Tensor:
        """Matrices [N, 3, 3] from a pixel's place to its place after it, (x, y, 1)."""
        angle = params["angle"].to(input)
        middle = (torch.tensor(input.shape[:-3:-1]).to(input) - 1) / 2
        matrix = torch.eye(3).to(input).repeat(len(angle), 1, 1)
        matrix[:, :2] = get_rotation_matrix2d(
            middle.expand(len(angle), 2), angle, torch.ones(len(angle), 2).to(input)
        )
        return matrix

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] to the same, rotated."""
        return rotate(input, params["angle"].to(input))
