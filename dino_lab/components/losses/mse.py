"""Squared distance."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register


@register("loss", "mse")
class Mse(nn.Module):
    """Squared distance |student - target|^2, mean over positive pairs and samples.

    With `normalize` both are first put on the unit sphere, which makes it 2 - 2 cos (BYOL, arXiv 2006.07733,
    Eq. 2).
    """

    negatives = False
    cross_entropy = False

    def __init__(
        self,
        dim: int,
        *,
        normalize: Annotated[
            bool, Field(description="scale student and target to unit length first, as BYOL")
        ] = True,
    ) -> None:
        super().__init__()
        self.normalize = normalize

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar."""
        if self.normalize:
            student, target = F.normalize(student, dim=-1), F.normalize(target, dim=-1)
        distance = (student[:, None] - target[None]).square().sum(-1).mean(-1)  # [S, T]
        positive = (pairs > 0).to(distance.dtype)
        return (distance * positive).sum() / positive.sum()
