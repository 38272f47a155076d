"""The projector or predictor of BYOL, SimSiam and their relatives."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register


@register("head", "mlp")
class Mlp(nn.Module):
    """Linear layers with ReLU between them: projector or predictor (BYOL, arXiv 2006.07733, Sec. 3.3).

    `batch_norm` stands before each ReLU; the last layer has neither.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden: Annotated[int, Field(gt=0, description="width of the layers between; BYOL: 4096")] = 4096,
        dim: Annotated[int, Field(gt=0, description="outputs K; BYOL: 256, SimCLR: 128")] = 256,
        layers: Annotated[int, Field(ge=2, description="linear layers; SimSiam's projector: 3")] = 2,
        batch_norm: Annotated[bool, Field(description="normalise before each ReLU over the batch")] = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        widths = [in_dim, *[hidden] * (layers - 1)]
        inner: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            # The bias before a BatchNorm would be subtracted again.
            inner.append(nn.Linear(wide, narrow, bias=not batch_norm))
            if batch_norm:
                inner.append(nn.BatchNorm1d(narrow))
            inner.append(nn.ReLU())
        self.layers = nn.Sequential(*inner, nn.Linear(hidden, dim))

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim] to [N, K]."""
        return self.layers(features)
