"""Greyscale."""

from __future__ import annotations

from typing import Any

from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, chosen
from dino_lab.kernels.crops.colour import grayscale
from dino_lab.registry import register


@register("operation", "grey")
class Grey(IntensityAugmentationBase2D):
    """The colour removed: each channel becomes the luma (ITU-R BT.601)."""

    step = "grey"

    def __init__(
        self,
        pixels: int,
        *,
        p: Probabilities = 0.2,
    ) -> None:
        super().__init__(p=1.0)
        self.probability = p

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Which become grey, bool [N]."""
        return {"grey": chosen(self.probability, batch_shape[0])}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] in 0..1 to the same."""
        return grayscale(input.clone(), params["grey"].to(input.device))
