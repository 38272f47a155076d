"""Targets that are the teacher's outputs."""

from __future__ import annotations

from torch import Tensor, nn

from dino_lab.registry import register


@register("targets", "identity")
class Identity(nn.Module):
    """The teacher's output as it is: BYOL, SimSiam, supervised training."""

    distribution = False

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, teacher: Tensor, progress: float) -> Tensor:
        """[T, B, K] to itself."""
        return teacher
