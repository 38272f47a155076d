"""How far embeddings of columns agree, and with which regions of the image. P columns of a grid [h, w]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosines(embeddings: Tensor) -> Tensor:
    """Cosine of every two columns, [..., P, P], of embeddings [..., D, h, w]."""
    columns = F.normalize(embeddings.flatten(-2).transpose(-2, -1), dim=-1)  # [..., P, D]
    return columns @ columns.transpose(-2, -1)


def regions(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """The region that most of a column's pixels belong to, [N, P], of numbered masks [N, H, W]."""
    share = F.adaptive_avg_pool2d(F.one_hot(masks.long()).permute(0, 3, 1, 2).float(), grid)  # [N, K, h, w]
    return share.argmax(1).flatten(1)


def gap(cosine: Tensor, same: Tensor, other: Tensor) -> Tensor:
    """Mean cosine over the pairs `same` less that over the pairs `other`, [...], of [..., P, P].

    A column is no pair with itself; NaN where there are no pairs of one kind.
    """
    between = ~torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    return _mean(cosine, same & between) - _mean(cosine, other & between)


def islands(cosine: Tensor, grid: tuple[int, int], threshold: float) -> Tensor:
    """Connected components of columns, [..., P], of cosines [..., P, P]; each is named by its first column.

    Columns above or beside one another are connected where their cosine exceeds the threshold.
    """
    height, width = grid
    index = torch.arange(height * width, device=cosine.device)
    near = (
        (index[:, None] // width - index // width).abs() + (index[:, None] % width - index % width).abs()
    ) == 1
    linked = near & (cosine > threshold)
    names = index.expand(cosine.shape[:-1])
    while True:
        # The least name around takes over, then the name of that name, so that long paths are soon walked.
        around = torch.where(linked, names[..., None, :], names[..., None]).amin(-1)
        least = torch.minimum(names, around)
        least = least.gather(-1, least)
        if torch.equal(least, names):
            return names
        names = least


def adjusted_rand(one: Tensor, other: Tensor) -> Tensor:
    """Adjusted Rand index of two partitions [..., P] (Hubert and Arabie, Journal of Classification 2, 1985).

    1 for equal partitions, 0 on average for independent ones.
    """
    together = [(x[..., None] == x[..., None, :]).flatten(-2) for x in (one, other)]
    count = one.shape[-1]
    # Ordered pairs of different columns.
    both, first, second = (
        x.sum(-1, dtype=torch.float64) - count for x in (together[0] & together[1], *together)
    )
    expected = first * second / max(1, count * (count - 1))
    most = (first + second) / 2
    return torch.where(most == expected, 1.0, (both - expected) / (most - expected))


def _mean(x: Tensor, where: Tensor) -> Tensor:
    return (x * where).sum((-2, -1)) / where.sum((-2, -1))
