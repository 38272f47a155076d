"""One crop of each image."""

from __future__ import annotations

import torch
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


@register("augment", "single")
class Single(nn.Module):
    """One view of each image, which is compared with the teacher's output for it: for supervised training.

    By default it is only cropped and mirrored, as classifiers are trained (Szegedy et al., arXiv 1409.4842,
    Sec. 6, with a milder crop).
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        size: Pixels = 224,
        scale: Scale = (0.25, 1.0),
        flip_probability: Probability = 0.5,
        rotation: Degrees = 0.0,
        brightness: Strength = 0.4,
        contrast: Strength = 0.4,
        saturation: Strength = 0.2,
        hue: HueStrength = 0.1,
        jitter_probability: Probability = 0.0,
        grey_probability: Probability = 0.0,
        blur_sigma: Sigma = (0.1, 2.0),
        blur_probability: Probability = 0.0,
        solarize_probability: Probability = 0.0,
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
            blur_probability=(blur_probability,),
            solarize_probability=(solarize_probability,),
        )
        self.groups = ((1, size),)
        self.register_buffer("pairs", torch.ones(1, 1, dtype=torch.int8))

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W], grey or RGB, to one group of one view."""
        return Views([self.policy(images, generator)], self.pairs)
