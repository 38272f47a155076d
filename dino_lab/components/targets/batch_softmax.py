"""Targets by a softmax over the batch."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.targets._sinkhorn import balanced
from dino_lab.registry import register
from dino_lab.schedule import Temperature, constant


@register("targets", "batch_softmax")
class BatchSoftmax(nn.Module):
    """x = softmax(teacher / temperature) over the samples of a view, then x / (sum of x over the outputs).

    The "Softmax(batch)" of DINO (arXiv 2104.14294, Appendix B, Table 15): each output chooses its samples. It
    is `sinkhorn` with one iteration.
    """

    distribution = True

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            Temperature, Field(description="tau_t, that the outputs are divided by; lower is sharper")
        ] = constant(0.05),
    ) -> None:
        super().__init__()
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        """[T, B, K] to distributions over K."""
        return balanced(teacher / self.temperature(progress), iterations=1)
