"""Colour jitter."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from pydantic import Field
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, between, chosen
from dino_lab.kernels.crops.colour import in_order, jitter
from dino_lab.registry import register

Strength = Annotated[
    float, Field(ge=0, description="strength s of the factor, which is uniform in 1 - s to 1 + s")
]


@register("operation", "jitter")
class Jitter(IntensityAugmentationBase2D):
    """Brightness, contrast, saturation and hue changed, in an order that is drawn for each crop.

    As torchvision.transforms.ColorJitter; the strengths are DINO's (arXiv 2104.14294, main_dino.py).
    """

    step = "jitter"

    def __init__(
        self,
        pixels: int,
        *,
        brightness: Strength = 0.4,
        contrast: Strength = 0.4,
        saturation: Strength = 0.2,
        hue: Annotated[
            float,
            Field(ge=0, le=0.5, description="largest shift to either side, in turns of the colour circle"),
        ] = 0.1,
        p: Probabilities = 0.8,
    ) -> None:
        super().__init__(p=1.0)
        self.strengths, self.hue, self.probability = (brightness, contrast, saturation), hue, p

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """The `blends` [N, 6, 3] and the `hue_shift` [N], in turns, of `kernels.crops.colour.jitter`."""
        N = batch_shape[0]
        jittered = chosen(self.probability, N)
        *shares, share = torch.rand(4, N)
        factors = [between(max(0.0, 1 - s), 1 + s, u) for s, u in zip(self.strengths, shares, strict=True)]
        factor = torch.where(jittered, torch.stack(factors), 1.0)  # [3, N]
        return {
            "blends": in_order(factor.T, torch.rand(N, 4)),
            "hue_shift": jittered * self.hue * (2 * share - 1),
        }

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] in 0..1 to the same."""
        return jitter(input.clone(), params["blends"].to(input), params["hue_shift"].to(input))
