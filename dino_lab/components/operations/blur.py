"""Gaussian blur."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from kornia.augmentation import IntensityAugmentationBase2D
from pydantic import Field
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, between, chosen
from dino_lab.kernels.crops.blur import gaussian_blur, kernel_radius
from dino_lab.registry import register
from dino_lab.registry.ranges import Sigma


@register("operation", "blur")
class Blur(IntensityAugmentationBase2D):
    """Gaussian blur of a standard deviation that is uniform in `sigma` (SimCLR, arXiv 2002.05709, App. A)."""

    step = "blur"

    def __init__(
        self,
        pixels: int,
        *,
        sigma: Annotated[
            Sigma,
            Field(description="smallest and largest standard deviation, in pixels of the crop"),
        ] = (0.1, 2.0),
        p: Probabilities = 0.5,
    ) -> None:
        super().__init__(p=1.0)
        self.sigma, self.probability = sigma, p
        self.radius = kernel_radius(sigma[1])  # of the kernel, in pixels

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Which are blurred, bool [N], and the standard deviations [N] in pixels."""
        N = batch_shape[0]
        return {"blurred": chosen(self.probability, N), "sigma": between(*self.sigma, torch.rand(N))}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] to the same."""
        sigma, blurred = params["sigma"].to(input), params["blurred"].to(input.device)
        return gaussian_blur(input, sigma, blurred, self.radius)
