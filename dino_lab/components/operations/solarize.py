"""Solarization."""

from __future__ import annotations

from typing import Any

from kornia.augmentation import IntensityAugmentationBase2D
from torch import Tensor

from dino_lab.components.operations._chances import Probabilities, chosen
from dino_lab.kernels.crops.colour import solarize
from dino_lab.registry import register


@register("operation", "solarize")
class Solarize(IntensityAugmentationBase2D):
    """Values of at least half the range inverted (BYOL, arXiv 2006.07733, App. B)."""

    step = "solarize"

    def __init__(
        self,
        pixels: int,
        *,
        p: Probabilities = 0.2,
    ) -> None:
        super().__init__(p=1.0)
        self.probability = p

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Which are solarized, bool [N]."""
        return {"solarized": chosen(self.probability, batch_shape[0])}

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] in 0..1 to the same."""
        return solarize(input, params["solarized"].to(input.device))
