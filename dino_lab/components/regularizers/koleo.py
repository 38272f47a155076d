"""The regularizer KoLeo, which spreads vectors over the unit sphere."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.registry import register
from dino_lab.types import Output, Views, at_least_float32

LEAST_DISTANCE = 1e-8  # added to distances, so that the logarithm of none is finite


@register("regularizer", "koleo")
class Koleo(nn.Module):
    """-log of the distance to the nearest other sample, on the unit sphere, mean over samples and views.

    The Kozachenko-Leonenko estimate of entropy (Sablayrolles et al., arXiv 1806.03198; DINOv2, arXiv
    2304.07193, Sec. 4). Of the views only those that the teacher sees, each by itself. DINOv2 adds up its two
    views: its weight of 0.1 is 0.2 here. Samples that are equal get no gradient from each other.
    """

    def __init__(
        self,
        *,
        weight: Annotated[
            float, Field(ge=0, description="factor of it in the loss; DINOv2's 0.1 is 0.2 here")
        ] = 0.1,
        on: Annotated[
            Literal["features", "projections"],
            Field(description="vectors that are spread: outputs of the backbone, or of the head"),
        ] = "features",
    ) -> None:
        super().__init__()
        self.weight, self.on = weight, on

    def forward(self, views: Views, student: Output) -> Tensor:
        """Output of [S, B, ...] to a scalar."""
        x = student.features if self.on == "features" else student.z
        x = x[: len(views.crops[0])]  # [V, B, D]
        x = F.normalize(at_least_float32(x), dim=-1)
        others = collectives.gather(x.transpose(0, 1)).transpose(0, 1)  # [V, N, D]
        distance = (x - _nearest(x, others)).norm(dim=-1)  # [V, B]
        return -(distance + LEAST_DISTANCE).log().mean()


def _nearest(x: Tensor, others: Tensor) -> Tensor:
    """For each of x [V, B, D] the nearest of others [V, N, D] that is not its own place there."""
    V, B, D = x.shape
    with torch.no_grad():
        cosine = x @ others.mT  # [V, B, N]
        place = torch.arange(B, device=x.device) + collectives.place(B)
        nearest = cosine.scatter_(2, place.expand(V, B)[..., None], -torch.inf).argmax(2)  # [V, B]
    return others.gather(1, nearest[..., None].expand(V, B, D))
