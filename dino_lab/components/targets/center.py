"""Targets by centring and sharpening."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.registry import register
from dino_lab.schedule import Momentum, Temperature, constant


@register("targets", "center")
class Center(nn.Module):
    """softmax((teacher - centre) / temperature) (DINO, arXiv 2104.14294, Sec. 3.1, Eq. 4).

    The centre is a running mean of the teacher's outputs; like BatchNorm's it is used and then updated, in
    training mode only: centre = momentum * centre + (1 - momentum) * mean of the batch. `temperature: null`
    leaves the softmax out, for the squared distance (Appendix B, Table 14).
    """

    mean: Tensor

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            Temperature | None,
            Field(description="tau_t of the softmax; DINO: 0.04, warmed up to 0.07; null: no softmax"),
        ] = constant(0.04),
        momentum: Annotated[
            Momentum, Field(description="m of the centre's running mean; DINO: 0.9, with 0.999 it collapses")
        ] = constant(0.9),
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.distribution = temperature is not None
        self.register_buffer("mean", torch.zeros(dim))

    @torch.no_grad()
    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        """[T, B, K] to distributions over K, or without temperature to centred outputs."""
        target = teacher - self.mean
        if self.temperature is not None:
            target = (target / self.temperature(progress)).softmax(-1)
        if self.training:
            batch_mean = collectives.mean(teacher.mean((0, 1)))  # [K]
            self.mean.lerp_(batch_mean, 1 - self.momentum(progress))
        return target
