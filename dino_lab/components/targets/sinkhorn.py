"""Targets by a balanced assignment of samples to outputs."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.targets._sinkhorn import balanced
from dino_lab.registry import register
from dino_lab.schedule import Temperature, constant


@register("targets", "sinkhorn")
class Sinkhorn(nn.Module):
    """exp(teacher / temperature), scaled until all outputs have the same share of the batch.

    Sinkhorn-Knopp (Cuturi, arXiv 1306.0895, Alg. 1) as in SwAV (arXiv 2006.09882, Sec. 3.1, Eq. 3 to 5): in
    each of the `iterations` every output is scaled to sum 1 over the samples, then every sample to sum 1 over
    the outputs. Each view is balanced by itself, as in SwAV, or with `joint` all of the teacher's views
    together, as in DINOv2 (arXiv 2304.07193).
    """

    distribution = True

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            Temperature, Field(description="epsilon, that the outputs are divided by; SwAV: 0.05")
        ] = constant(0.05),
        iterations: Annotated[int, Field(gt=0, le=1000, description="rounds of scaling; SwAV: 3")] = 3,
        joint: Annotated[
            bool, Field(description="balance all of the teacher's views together, as DINOv2; false: each")
        ] = False,
    ) -> None:
        super().__init__()
        self.temperature, self.iterations, self.joint = temperature, iterations, joint

    @torch.no_grad()
    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        """[T, B, K] to distributions over K."""
        logits = teacher / self.temperature(progress)
        groups = logits.flatten(0, 1)[None] if self.joint else logits  # [1, T * B, K] or [T, B, K]
        return balanced(groups, self.iterations).view_as(teacher)
