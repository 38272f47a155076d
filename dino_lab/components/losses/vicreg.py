"""The loss of VICReg."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.losses._pairs import weights
from dino_lab.registry import register


@register("loss", "vicreg")
class Vicreg(nn.Module):
    """Squared distance, and for both sides a hinge on each output's deviation and squared covariances.

    VICReg, arXiv 2105.04906, Sec. 4.1; mean over positive pairs of views, each counted once. Wants a target
    that a gradient reaches: teacher siamese, `stop_gradient: false`. The weights 25, 25 and 1 (Sec. 4.2)
    belong to `scaling: code`, in which the authors trained: squared distances are averaged over the K
    outputs, and the hinges of the two sides too. In `scaling: paper` both are sums (Eq. 5 and 6), so that the
    same loss has the weights 25 / K, 12.5 and 1.
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
        scaling: Annotated[
            Literal["code", "paper"],
            Field(
                description="code: distances and hinges are means, as the authors trained; paper: Eq. 1 to 6"
            ),
        ] = "code",
        deviation: Annotated[
            float, Field(gt=0, description="gamma, standard deviation below which the hinge acts; VICReg: 1")
        ] = 1.0,
        epsilon: Annotated[
            float, Field(gt=0, description="added to variances before the root; VICReg: 0.0001")
        ] = 1e-4,
    ) -> None:
        super().__init__()
        self.factors = {"invariance": invariance, "variance": variance, "covariance": covariance}
        self.scales = {"invariance": 1 / dim, "variance": 0.5} if scaling == "code" else {}
        self.deviation, self.epsilon = deviation, epsilon

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar."""
        terms = self.measure(student, target, pairs)
        return torch.stack([self.factors[name] * term for name, term in terms.items()]).sum()

    def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
        """The three terms as `scaling` says, before they are weighted."""
        weight = weights(pairs, student.dtype)
        distance = (student[:, None] - target[None]).square().sum(-1).mean(-1)  # [S, T]
        (v, c), (w, d) = self._spread(student), self._spread(target)
        of_student, of_target = weight.sum(1), weight.sum(0)
        terms = {
            "invariance": (weight * distance).sum(),
            "variance": of_student @ v + of_target @ w,
            "covariance": of_student @ c + of_target @ d,
        }
        return {name: term * self.scales.get(name, 1.0) for name, term in terms.items()}

    def _spread(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Variance and covariance term of each view, [V] and [V], of [V, B, K]."""
        B, K = x.shape[1:]
        x = x - collectives.mean(x.mean(1, keepdim=True))
        samples = collectives.whole(B)
        covariance = collectives.mean(x.mT @ x / B) * (samples / max(samples - 1, 1))  # [V, K, K]
        variance = covariance.diagonal(dim1=1, dim2=2)  # [V, K]
        missing = (self.deviation - (variance + self.epsilon).sqrt()).relu()
        return missing.mean(1), (covariance - torch.diag_embed(variance)).square().sum((1, 2)) / K
