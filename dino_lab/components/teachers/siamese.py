"""The student in place of a teacher."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from dino_lab.network import Network
from dino_lab.registry import register
from dino_lab.types import Output, Views


@register("teacher", "siamese")
class Siamese(nn.Module):
    """The student itself, before its predictor: SimSiam (arXiv 2011.10566, Alg. 1) with `stop_gradient`.

    Costs no second forward pass.
    """

    network = None

    def __init__(
        self,
        student: Network,
        *,
        stop_gradient: Annotated[
            bool, Field(description="no gradient reaches the target; false for VICReg, Barlow Twins, SimCLR")
        ] = True,
    ) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient

    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """The student's outputs [T, B, K] for the views in crops[0]."""
        z = student.z[: len(views.crops[0])]
        return z.detach() if self.stop_gradient else z

    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Nothing to do: the student has moved already."""
