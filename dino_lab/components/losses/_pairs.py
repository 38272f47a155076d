"""Weights of pairs of views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weights(pairs: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights [S, T] that sum to 1, equal for all unordered pairs of views that are positive.

    Where student s is compared with target t and student t with target s, each of the two weighs half: they
    are the same two views.
    """
    positive = (pairs > 0).to(dtype)
    S, T = pairs.shape
    mirrored = positive[:T].mT * (1 - torch.eye(T, dtype=dtype, device=pairs.device))
    weight = positive / (1 + F.pad(mirrored, (0, 0, 0, S - T)))
    return weight / weight.sum()
