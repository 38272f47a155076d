"""Multi-crop: a few large crops that both networks see, and many small ones that only the student sees."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Annotated, Any, Literal

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

PerKind = Annotated[
    tuple[Probability, Probability, Probability],
    Field(description="of global view 1, of the other global views, of the local views"),
]
MOST_VIEWS = 1000  # of an image, of either size
FREE = ("preset", "global_views", "global_size", "local_views", "local_size")  # of what a preset says


@register("augment", "multicrop")
class MultiCrop(nn.Module):
    """Global and local crops of each image (SwAV, arXiv 2006.09882, Sec. 3.3; DINO, arXiv 2104.14294).

    Every student view is compared with every teacher view but itself. The defaults are DINO's operations,
    order and probabilities; `preset: dino_v1` makes sure of that: it refuses any other value, but for
    the number and size of the crops. Blur and solarize have three probabilities each: of global view 1, of
    the other global views, of the local views.
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        preset: Literal["dino_v1"] | None = None,
        global_views: Annotated[int, Field(ge=2, le=MOST_VIEWS)] = 2,
        global_size: Pixels = 224,
        global_scale: Scale = (0.4, 1.0),
        local_views: Annotated[int, Field(ge=0, le=MOST_VIEWS)] = 8,
        local_size: Pixels = 96,
        local_scale: Scale = (0.05, 0.4),
        flip_probability: Probability = 0.5,
        rotation: Degrees = 0.0,
        brightness: Strength = 0.4,
        contrast: Strength = 0.4,
        saturation: Strength = 0.2,
        hue: HueStrength = 0.1,
        jitter_probability: Probability = 0.8,
        grey_probability: Probability = 0.2,
        blur_sigma: Sigma = (0.1, 2.0),
        blur_probability: PerKind = (1.0, 0.1, 0.5),
        solarize_probability: PerKind = (0.0, 0.2, 0.0),
    ) -> None:
        if preset is not None:
            _check_preset(preset, locals())
        super().__init__()
        large = Policy(
            size=global_size,
            scale=global_scale,
            flip_probability=flip_probability,
            rotation=rotation,
            brightness=brightness,
            contrast=contrast,
            saturation=saturation,
            hue=hue,
            jitter_probability=jitter_probability,
            grey_probability=grey_probability,
            blur_sigma=blur_sigma,
            blur_probability=_globals(blur_probability, global_views),
            solarize_probability=_globals(solarize_probability, global_views),
        )
        small = replace(
            large,
            size=local_size,
            scale=local_scale,
            blur_probability=blur_probability[2:] * local_views,
            solarize_probability=solarize_probability[2:] * local_views,
        )
        self.policies = [policy for policy in (large, small) if policy.views]
        self.groups = tuple((policy.views, policy.size) for policy in self.policies)
        pairs = 1 - torch.eye(global_views + local_views, global_views, dtype=torch.int8)
        self.register_buffer("pairs", pairs)

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W], grey or RGB, to global crops and, where there are any, local crops."""
        return Views([policy(images, generator) for policy in self.policies], self.pairs)


def _globals(probability: tuple[float, float, float], views: int) -> tuple[float, ...]:
    return probability[:1] + probability[1:2] * (views - 1)


def _check_preset(preset: str, given: dict[str, Any]) -> None:
    """The preset is the constructor's defaults; whatever differs is an error that names it."""
    for name, parameter in inspect.signature(MultiCrop).parameters.items():
        if name not in FREE and given[name] != parameter.default:
            raise ValueError(
                f"{name} is {parameter.default} in preset {preset}, got {given[name]}; "
                f"leave out {name} or the preset"
            )
