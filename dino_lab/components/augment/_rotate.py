"""Rotation of crops, by Kornia."""

from __future__ import annotations

from torch import Tensor


def turn(x: Tensor, angle: Tensor) -> Tensor:
    """Crops [N, C, H, W] turned by `angle` [N] degrees, each mirrored at its edges."""
    # Kornia takes long to import, and few specs turn anything.
    from kornia.geometry.transform import rotate

    return rotate(x, angle, padding_mode="reflection")
