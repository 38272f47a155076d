"""Two crops with different operations, and small crops on request."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.augment._operations import (
    BlurProbability,
    SolarizeProbability,
    ViewOperations,
)
from dino_lab.registry import register
from dino_lab.registry.ranges import Scale
from dino_lab.types import Images, Views


class FirstView(ViewOperations):
    """Operations on the first view; always blurred, as in BYOL."""

    blur_probability: BlurProbability = 1.0


class SecondView(ViewOperations):
    """Operations on the second view; seldom blurred and sometimes solarized, as in BYOL."""

    blur_probability: BlurProbability = 0.1
    solarize_probability: SolarizeProbability = 0.2


class LocalView(ViewOperations):
    """Operations on the local views; small crops, as in DINO."""

    scale: Scale = (0.05, 0.4)


FIRST, SECOND, LOCAL = FirstView(), SecondView(), LocalView()


@register("augment", "asymmetric")
class Asymmetric(nn.Module):
    """Two views with different operations, compared with each other (BYOL, arXiv 2006.07733, App. B).

    With `one_way` the teacher sees the first view alone, the key, and the other views are queries for it
    (MoCo, arXiv 1911.05722, Alg. 1). `local_views` are seen by the student only and compared with every
    view of the teacher (SwAV, arXiv 2006.09882, Sec. 3.2).
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        size: Annotated[int, Field(gt=0, description="side of the two large crops, in pixels")] = 224,
        first: Annotated[FirstView, Field(description="operations of the first view")] = FIRST,
        second: Annotated[SecondView, Field(description="operations of the second view")] = SECOND,
        one_way: Annotated[
            bool,
            Field(description="the teacher sees the first view alone, the student the others"),
        ] = False,
        local_views: Annotated[int, Field(ge=0, description="small crops, which only the student sees")] = 0,
        local_size: Annotated[int, Field(gt=0, description="side of the local crops, in pixels")] = 96,
        local: Annotated[LocalView, Field(description="operations of the local views")] = LOCAL,
    ) -> None:
        super().__init__()
        large = [first.views(size), second.views(size)]
        groups = [[policy] for policy in large] if one_way else [large]
        # By size of crop: what happens to the views of a group, one policy after the other.
        self.policies = groups + [[local.views(local_size, local_views)]] * bool(local_views)
        self.groups = tuple((sum(p.views for p in group), group[0].size) for group in self.policies)
        pairs = 1 - torch.eye(2 + local_views, 1 if one_way else 2, dtype=torch.int8)
        self.register_buffer("pairs", pairs)

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to the teacher's views, further queries, local views."""
        return self.forward_share(images, generator, len(images), 0)

    def forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """The crops of some images of a batch, from position `first` on: see the protocol."""
        crops = [
            torch.cat([policy(images, generator, batch, first) for policy in group])
            for group in self.policies
        ]
        return Views(crops, self.pairs)
