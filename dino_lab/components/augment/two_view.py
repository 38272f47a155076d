"""Two crops of one size, compared with each other."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.augment._operations import Operations, Pixels
from dino_lab.registry import Flat, register
from dino_lab.registry.ranges import Probability, Scale
from dino_lab.types import Images, Views

PerView = tuple[Probability, Probability]


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
        operations: Flat[Operations] = Operations(),
        blur_probability: Annotated[
            PerView, Field(description="probability of a blur: first view, second view")
        ] = (1.0, 0.1),
        solarize_probability: Annotated[
            PerView, Field(description="probability to solarize: first view, second view")
        ] = (0.0, 0.2),
    ) -> None:
        super().__init__()
        self.policy = operations.policy(size, scale, blur_probability, solarize_probability)
        self.groups = ((2, size),)
        self.register_buffer("pairs", 1 - torch.eye(2, dtype=torch.int8))

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to one group of two views."""
        return self.forward_share(images, generator, len(images), 0)

    def forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """The crops of some images of a batch, from position `first` on: see the protocol."""
        return Views([self.policy(images, generator, batch, first)], self.pairs)
