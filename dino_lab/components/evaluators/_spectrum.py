"""Measures of features that need no label: rank, spread, uniformity and alignment, in float64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024  # images compared with all others at once
RANK_EPSILON = 1e-7  # of RankMe, for features in float32
UNIFORMITY_T = 2.0  # of Wang and Isola


def rank_me(features: Tensor) -> float:
    """Exp of the entropy of the singular values' shares, features [N, D]; RankMe, arXiv 2210.02885, Eq. 1."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + RANK_EPSILON
    return (-(shares * shares.log()).sum()).exp().item()


def spread(features: Tensor) -> float:
    """Std of normalised features [N, D], mean over dimensions; SimSiam, arXiv 2011.10566, Sec. 4.1."""
    return F.normalize(features.double(), dim=1).std(0, correction=0).mean().item()


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of exp(-2 |x - y|^2) of normalised features [N, D].

    Wang and Isola, arXiv 2005.10242, Sec. 4.2; a pair is two different images, and N is at least 2.
    """
    x = F.normalize(features.double(), dim=1)
    N, total = len(x), x.new_zeros(())
    for start in range(0, N, CHUNK):
        chunk = x[start : start + CHUNK]
        kernel = (-UNIFORMITY_T * _squared(chunk @ x[start:].T)).exp()  # [B, N - start]
        total += kernel.triu(1).sum()
    return math.log(total.item() / (N * (N - 1) / 2))


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean |x - y|^2 of normalised features [N, D] of two crops of each image; arXiv 2005.10242, Sec. 4.2."""
    cosines = (F.normalize(one.double(), dim=1) * F.normalize(other.double(), dim=1)).sum(1)
    return _squared(cosines).mean().item()


def eigenvalues(features: Tensor) -> Tensor:
    """Of the covariance of features [N, D], largest first: [D], on the CPU."""
    x = features.double()
    x = x - x.mean(0)
    return torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0).clamp_min(0).cpu()


def _squared(cosines: Tensor) -> Tensor:
    """Distances of unit vectors, squared."""
    return (2 - 2 * cosines).clamp_min(0)
