"""How clusters and classes agree."""

from __future__ import annotations

import torch
from torch import Tensor


def contingency(labels: Tensor, clusters: Tensor, classes: int, k: int) -> Tensor:
    """Number of images by class and cluster, int64 [classes, k], from int64 [N] each."""
    return torch.bincount(labels * k + clusters, minlength=classes * k).view(classes, k)


def matching(counts: Tensor) -> dict[int, int]:
    """The cluster of each class in the one-to-one matching with most images in it, from counts [classes, k].

    The Hungarian method; where there are more classes than clusters, some classes have none.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    return dict(zip(rows.tolist(), columns.tolist(), strict=True))


def matched_order(counts: Tensor) -> list[int]:
    """All clusters: those of the classes, in the order of the classes, then the rest."""
    first = [cluster for _, cluster in sorted(matching(counts).items())]
    return first + [cluster for cluster in range(counts.shape[1]) if cluster not in first]
