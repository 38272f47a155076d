"""Whitening by principal components."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LEAST = 1e-5  # eigenvalues, in shares of the largest, are raised to it


@dataclass(frozen=True)
class Whitening:
    """x to L^-power V^T (x - mean), of the covariance V L V^T of some features."""

    mean: Tensor  # [D]
    projection: Tensor  # [D, D]

    @classmethod
    def learned(cls, features: Tensor, power: float, *, centred: bool) -> Whitening:
        """From features [N, D], in float64; power 0.5 whitens completely (Jégou and Chum, ECCV 2012, Sec. 3).

        `centred: False` takes the second moments, which still hold the mean, for the covariance.
        """
        x = features.double()
        mean = x.mean(0)
        deviation = x - mean if centred else x
        values, vectors = torch.linalg.eigh(deviation.T @ deviation / len(x))  # [D], [D, D]
        values = values.clamp_min(LEAST * values[-1])
        return cls(mean, vectors / values.pow(power))

    def __call__(self, features: Tensor) -> Tensor:
        """Features [N, D] to float32 [N, D]."""
        return ((features.double() - self.mean) @ self.projection).float()
