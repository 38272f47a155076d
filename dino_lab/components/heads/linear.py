"""One linear layer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register


@register("head", "linear")
class LinearHead(nn.Module):
    """One linear layer: features [N, in_dim] to [N, dim]."""

    def __init__(
        self,
        in_dim: int,
        *,
        dim: Annotated[int, Field(gt=0, description="outputs K; supervised: at least the number of classes")],
    ) -> None:
        super().__init__()
        self.dim = dim
        self.linear = nn.Linear(in_dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim] to [N, K]."""
        return self.linear(features)
