"""Rotation about the middle of a crop."""

from __future__ import annotations

from torch import Tensor


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """Crops [N, C, H, W] rotated by `angle` [N] degrees, each mirrored at its edges."""
    # Kornia takes long to import, and few specs rotate anything.
    from kornia.geometry import transform

    return transform.rotate(x, angle, padding_mode="reflection")
