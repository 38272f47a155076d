"""The loss of VICReg."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.losses._pairs import weights
from dino_lab.registry import register


@register("loss", "vicreg")
class Vicreg(nn.Module):
    """Squared distance, and for both sides a hinge on each output's deviation and squared covariances.

    VICReg, arXiv 2105.04906, Eq. 1 to 6; mean over positive pairs of views, each counted once. Wants a target
    that a gradient reaches: teacher siamese, `stop_gradient: false`. Eq. 5 sums over outputs; Alg. 1 takes
    their mean, which is `invariance: 25 / K` here.
    """

    negatives = False
    cross_entropy = False

    def __init__(
        self,
        dim: int,
        *,
        invariance: Annotated[
            float, Field(ge=0, description="lambda, weight of the distance of student and target; VICReg: 25")
        ] = 25.0,
        variance: Annotated[
            float, Field(ge=0, description="mu, weight of the hinge on standard deviations; VICReg: 25")
        ] = 25.0,
        covariance: Annotated[
            float, Field(ge=0, description="nu, weight of the squared covariances; VICReg: 1")
        ] = 1.0,
        deviation: Annotated[
            float, Field(gt=0, description="gamma, standard deviation below which the hinge acts; VICReg: 1")
        ] = 1.0,
        epsilon: Annotated[
            float, Field(gt=0, description="added to variances before the root; VICReg: 0.0001")
        ] = 1e-4,
    ) -> None:
        super().__init__()
        self.factors = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.deviation, self.epsilon = deviation, epsilon

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar."""
        terms = self.measure(student, target, pairs)
        return torch.stack([self.factors[name] * term for name, term in terms.items()]).sum()

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """The three terms, before they are weighted."""
        weight = weights(pairs, student.dtype)
        distance = (student[:, None] - target[None]).square().sum(-1).mean(-1)  # [S, T]
        (v, c), (w, d) = self._spread(student), self._spread(target)
        of_student, of_target = weight.sum(1), weight.sum(0)
        return {
            "invariance": (weight * distance).sum(),
            "variance": of_student @ v + of_target @ w,
            "covariance": of_student @ c + of_target @ d,
        }

    def _spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Variance and covariance term of each view, [V] and [V], of [V, B, K]."""
        B, K = x.shape[1:]
        x = x - collectives.mean(x.mean(1, keepdim=True))
        samples = B * collectives.processes()
        covariance = collectives.mean(x.mT @ x / B) * (samples / max(samples - 1, 1))  # [V, K, K]
        variance = covariance.diagonal(dim1=1, dim2=2)  # [V, K]
        missing = (self.deviation - (variance + self.epsilon).sqrt()).relu()
        return missing.mean(1), (covariance - torch.diag_embed(variance)).square().sum((1, 2)) / K
