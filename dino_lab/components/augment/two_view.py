"""Two crops of one size, compared with each other."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.augment._parameters import (
    Degrees,
    HueStrength,
    Pixels,
    Probability,
    Scale,
    Sigma,
    Strength,
)
from dino_lab.components.augment._policy import Policy
from dino_lab.registry import register
from dino_lab.types import Views

PerView = Annotated[
    tuple[Probability, Probability], Field(description="of the first view, of the second view")
]


@register("augment", "two_view")
class TwoView(nn.Module):
    """Two views of each image; each is compared with the other (BYOL, arXiv 2006.07733, App. B).

    The defaults are BYOL's. SimCLR blurs both views alike: `blur_probability: [0.5, 0.5]`, and solarizes
    none: `solarize_probability: [0, 0]`.
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        size: Pixels = 224,
        scale: Scale = (0.08, 1.0),
        flip_probability: Probability = 0.5,
        rotation: Degrees = 0.0,
        brightness: Strength = 0.4,
        contrast: Strength = 0.4,
        saturation: Strength = 0.2,
        hue: HueStrength = 0.1,
        jitter_probability: Probability = 0.8,
        grey_probability: Probability = 0.2,
        blur_sigma: Sigma = (0.1, 2.0),
        blur_probability: PerView = (1.0, 0.1),
        solarize_probability: PerView = (0.0, 0.2),
    ) -> None:
        super().__init__()
        self.policy = Policy(
            size=size,
            scale=scale,
            flip_probability=flip_probability,
            rotation=rotation,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            jitter_probability=jitter_probability,
            grey_probability=grey_probability,
            blur_sigma=blur_sigma,
            blur_probability=blur_probability,
            solarize_probability=solarize_probability,
        )
        self.groups = ((2, size),)
        self.register_buffer("pairs", 1 - torch.eye(2, dtype=torch.int8))

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W], grey or RGB, to one group of two views."""
        return Views([self.policy(images, generator)], self.pairs)
