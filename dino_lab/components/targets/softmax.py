"""Targets by sharpening without centring."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dino_lab.registry import register
from dino_lab.schedule import Temperature, constant


@register("targets", "softmax")
class Softmax(nn.Module):
    """softmax(teacher / temperature): DINO without centring, which collapses (arXiv 2104.14294, Sec. 5.3)."""

    distribution = True

    def __init__(
        self,
        dim: int,
        *,
        temperature: Annotated[
            Temperature, Field(description="tau_t, that the outputs are divided by; DINO: 0.04 to 0.07")
        ] = constant(0.04),
    ) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        """[T, B, K] to distributions over K."""
        return (teacher / self.temperature(progress)).softmax(-1)
