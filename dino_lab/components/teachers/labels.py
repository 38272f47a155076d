"""Labels in place of a teacher."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.network import Network
from dino_lab.registry import register
from dino_lab.types import Output, Views


@register("teacher", "labels")
class Labels(nn.Module):
    """One-hot labels: supervised training, with `targets: identity` and cross-entropy at temperature 1.

    With `smoothing` s they are (1 - s) * one-hot + s / K (Szegedy et al., arXiv 1512.00567, Sec. 7). Of the K
    outputs of the head the first stand for the classes; there may be more than classes.
    """

    network = None

    def __init__(
        self,
        student: Network,
        *,
        smoothing: Annotated[
            float, Field(ge=0, le=1, description="share s of a target that all K outputs divide evenly")
        ] = 0.0,
    ) -> None:
        super().__init__()
        head: Any = student.head
        self.dim: int = head.dim
        self.smoothing = smoothing

    def check_classes(self, classes: int) -> None:
        """ValueError where there are more classes than outputs."""
        if classes > self.dim:
            raise ValueError(f"{self.dim} outputs are too few for the {classes} classes of the data")

    @torch.no_grad()
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """[B] to the same distributions [T, B, K] for every view."""
        inside = ((labels >= 0) & (labels < self.dim)).all()
        torch._assert_async(inside, f"labels must be in 0..{self.dim - 1}")  # without waiting for a GPU
        # Not F.one_hot, which waits for a GPU.
        one_hot = (labels[:, None] == torch.arange(self.dim, device=labels.device)).float()
        target = (1 - self.smoothing) * one_hot + self.smoothing / self.dim  # [B, K]
        return target.expand(len(views.crops[0]), -1, -1)

    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Nothing to do."""
