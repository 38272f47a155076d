"""Average precision of rankings, in the two ways that retrieval benchmarks have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def average_precision(relevant: Tensor) -> Tensor:
    """Mean, over the relevant items, of the precision at their ranks; bool [B, M], best first, to [B].

    float64, and NaN where nothing is relevant. It is the sum over ranks of (recall_r - recall_r-1) *
    precision_r; for scores without ties, what scikit-learn calls average_precision_score.
    """
    hits, ranks = _hits_and_ranks(relevant)
    return (hits / ranks * relevant).sum(1) / relevant.sum(1)


def trapezoid_average_precision(relevant: Tensor, total: Tensor) -> Tensor:
    """Area below precision over recall by the trapezoid rule; bool [B, M], best first, to float64 [B].

    `total` int64 [B] is how many are relevant in the whole database, of which [B, M] may be the beginning;
    NaN where that is 0. The precision before the first rank is 1. The rule of the Oxford, Paris and Holidays
    benchmarks: Philbin et al., CVPR 2007, Sec. 3.1; Jégou et al., ECCV 2008.
    """
    hits, ranks = _hits_and_ranks(relevant)
    after = hits / ranks
    before = torch.where(ranks > 1, (hits - 1) / (ranks - 1).clamp_min(1), 1.0)  # at the rank before a hit
    return ((before + after) / 2 * relevant).sum(1) / total


def precision_at(relevant: Tensor, k: int) -> Tensor:
    """Share of relevant items among the first k; bool [B, M], best first, to float64 [B]."""
    return relevant[:, :k].double().sum(1) / k


def mean_of_queries(values: Sequence[Tensor]) -> float:
    """Mean over the queries to which something is relevant; NaN where there is none."""
    return float(torch.cat(list(values)).nanmean())


def _hits_and_ranks(relevant: Tensor) -> tuple[Tensor, Tensor]:
    """How many relevant items there are up to each rank [B, M], and the ranks [M] from 1; float64."""
    ranks = torch.arange(1, relevant.shape[1] + 1, dtype=torch.float64, device=relevant.device)
    return relevant.cumsum(1, dtype=torch.float64), ranks
