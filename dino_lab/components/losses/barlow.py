"""The loss of Barlow Twins."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.losses._pairs import weights
from dino_lab.registry import register

LEAST_VARIANCE = 1e-12  # far below any output's; keeps an output that is the same for all samples at 0


@register("loss", "barlow")
class Barlow(nn.Module):
    """sum_i (1 - C_ii)^2 + off_diagonal * sum_i!=j C_ij^2, C being the correlations of student and target.

    Barlow Twins, arXiv 2103.03230, Eq. 1 and 2; mean over positive pairs of views, each counted once. Wants a
    target that a gradient reaches: teacher siamese, `stop_gradient: false`.
    """

    negatives = False
    cross_entropy = False

    def __init__(
        self,
        dim: int,
        *,
        off_diagonal: Annotated[
            float, Field(ge=0, description="lambda, weight of the redundancy term; Barlow Twins: 0.005")
        ] = 0.005,
    ) -> None:
        super().__init__()
        self.off_diagonal = off_diagonal

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar."""
        product = torch.einsum("sbk,tbl->stkl", _standardised(student), _standardised(target))
        correlation = collectives.mean(product / student.shape[1])  # [S, T, K, K]
        same = correlation.diagonal(dim1=2, dim2=3)  # [S, T, K]
        redundancy = (correlation - torch.diag_embed(same)).square().sum((2, 3))
        loss = (1 - same).square().sum(2) + self.off_diagonal * redundancy
        return (loss * weights(pairs, loss.dtype)).sum()


def _standardised(x: Tensor) -> Tensor:
    """Each output of [V, B, K] less its mean over the batch, over its standard deviation."""
    x = x - collectives.mean(x.mean(1, keepdim=True))
    return x / (collectives.mean(x.square().mean(1, keepdim=True)) + LEAST_VARIANCE).sqrt()
