"""The projector or predictor of BYOL, SimSiam and their relatives."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register

OutputNorm = Literal["none", "plain", "scale", "affine"]


@register("head", "mlp")
class Mlp(nn.Module):
    """Linear layers with ReLU between them: projector or predictor (BYOL, arXiv 2006.07733, Sec. 3.3).

    `batch_norm` stands before each ReLU, `output_batch_norm` after the last layer (SimSiam, arXiv 2011.10566,
    Sec. 3; MoCo v3, arXiv 2104.02057, Sec. 5): `affine` with learned scale and shift, `plain` without
    (SimSiam, Sec. 4.4; the code of both), `scale` with a scale only (SimCLR's code). A layer before a batch
    norm has no bias.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden: Annotated[int, Field(gt=0, description="width of the layers between; BYOL: 4096")] = 4096,
        dim: Annotated[int, Field(gt=0, description="outputs K; BYOL: 256, SimCLR: 128")] = 256,
        layers: Annotated[int, Field(ge=2, le=20, description="linear layers; SimSiam's projector: 3")] = 2,
        batch_norm: Annotated[bool, Field(description="normalise before each ReLU over the batch")] = True,
        output_batch_norm: Annotated[
            OutputNorm, Field(description="batch norm after the last layer; SimSiam's projector: plain")
        ] = "none",
        output_bias: Annotated[
            bool, Field(description="bias of the last layer, where no batch norm follows it")
        ] = True,
    ) -> None:
        super().__init__()
        self.dim = dim
        widths = [in_dim, *[hidden] * (layers - 1)]
        modules: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            # The bias before a BatchNorm would be subtracted again.
            modules.append(nn.Linear(wide, narrow, bias=not batch_norm))
            if batch_norm:
                modules.append(nn.BatchNorm1d(narrow))
            modules.append(nn.ReLU())
        modules.append(nn.Linear(hidden, dim, bias=output_bias and output_batch_norm == "none"))
        if output_batch_norm != "none":
            modules.append(_output_norm(dim, output_batch_norm))
        self.layers = nn.Sequential(*modules)

    def forward(self, features: Tensor) -> Tensor:
        """[N, in_dim] to [N, K]."""
        return self.layers(features)


def _output_norm(dim: int, kind: OutputNorm) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(dim, affine=kind != "plain")
    if kind == "scale":
        norm.bias.requires_grad_(False)  # stays 0
    return norm
