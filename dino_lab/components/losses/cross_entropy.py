"""Cross-entropy between distributions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dino_lab.kernels.cross_entropy import cross_entropy
from dino_lab.registry import register


@register("loss", "cross_entropy")
class CrossEntropy(nn.Module):
    """-sum_k target_k log softmax(student / temperature)_k, mean over positive pairs and samples.

    DINO, arXiv 2104.14294, Eq. 2 and 3.
    """

    negatives = False
    cross_entropy = True

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            float, Field(gt=0, description="tau_s of the student's softmax; DINO: 0.1, supervised: 1")
        ] = 0.1,
    ) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        """[S, B, K], [T, B, K], [S, T] to a scalar."""
        return cross_entropy(student, target, pairs > 0, self.temperature)
