"""Tensors that travel between components.

Shape letters, everywhere in this package:
    B samples in the batch        S views the student sees     D backbone features
    C, H, W image                 T views the teacher sees     K head outputs
    N images, of any view         V views of one size
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Views:
    """Augmented crops of one batch, and which of them are compared."""

    crops: list[Tensor]  # by size, each [V, B, C, H, W], float in 0..1; the teacher sees crops[0] only
    pairs: Tensor  # [S, T] int8: +1 pull together, -1 push apart, 0 ignore


@dataclass(frozen=True)
class Output:
    """What a network says about every view it saw."""

    features: Tensor  # [S, B, D] from the backbone
    z: Tensor  # [S, B, K] from the head
    p: Tensor  # [S, B, K] from the predictor, or z itself
