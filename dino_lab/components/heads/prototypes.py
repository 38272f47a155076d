"""The DINO head."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from dino_lab.kernels.linear import linear
from dino_lab.registry import register

PAPER_WIDTH = 2048  # with 0.02 a narrower head would shrink its input until the biases drown it


class Cosines(nn.Module):
    """Similarity [N, K] of unit vectors [N, D] to K unit prototypes, times a gain (1 where it is fixed)."""

    def __init__(self, in_dim: int, dim: int, *, gain: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, in_dim))
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.gain = nn.Parameter(torch.ones(dim, 1)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] to [N, K]."""
        directions = F.normalize(self.weight, dim=-1)
        return linear(x, directions if self.gain is None else directions * self.gain)


@register("head", "prototypes")
class Prototypes(nn.Module):
    """MLP to a bottleneck, L2 norm, cosine to `dim` prototypes (DINO, arXiv 2104.14294, Sec. 3.1).

    With `norm_last_layer` the gain of each prototype stays at 1, so the outputs lie in -1..1; without, it is
    learned. `batch_norm` stands before each activation: GELU, or ReLU in SwAV (arXiv 2006.09882).
    Appendix C of DINO's paper ablates all of these.
    """

    last_layer: nn.Module

    def __init__(
        self,
        in_dim: int,
        *,
        dim: Annotated[
            int, Field(gt=1, description="prototypes, the outputs K; DINO: 65536, SwAV: 3000")
        ] = 65536,
        layers: Annotated[
            int, Field(ge=1, le=20, description="linear layers up to the bottleneck; DINO: 3")
        ] = 3,
        hidden: Annotated[int, Field(gt=0, description="width of the layers between; DINO: 2048")] = 2048,
        bottleneck: Annotated[int, Field(gt=0, description="dimensions of the unit vector; DINO: 256")] = 256,
        batch_norm: Annotated[
            bool, Field(description="normalise over the batch before each activation; DINO: not with ViTs")
        ] = False,
        norm_last_layer: Annotated[
            bool, Field(description="fix the gain of each prototype to 1; false: learn it")
        ] = True,
        activation: Annotated[
            Literal["gelu", "relu"],
            Field(description="nonlinearity between the linear layers; DINO: gelu, SwAV: relu"),
        ] = "gelu",
    ) -> None:
        super().__init__()
        self.dim = dim
        widths = [in_dim, *[hidden] * (layers - 1)]
        inner: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            inner.append(nn.Linear(wide, narrow))
            if batch_norm:
                inner.append(nn.BatchNorm1d(narrow))
            inner.append(nn.GELU() if activation == "gelu" else nn.ReLU())
        self.mlp = nn.Sequential(*inner, nn.Linear(widths[-1], bottleneck))
        self.last_layer = Cosines(bottleneck, dim, gain=not norm_last_layer)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02 * (PAPER_WIDTH / hidden) ** 0.5)
                nn.init.zeros_(module.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim] to [N, K]."""
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))
