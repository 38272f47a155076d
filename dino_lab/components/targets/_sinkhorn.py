"""Sinkhorn-Knopp on logits."""

from __future__ import annotations

from torch import Tensor

from dino_lab import collectives


def balanced(logits: Tensor, iterations: int) -> Tensor:
    """exp(logits) [G, N, K], in each group scaled by turns: sums over N to 1, then sums over K to 1.

    N runs over the samples of all processes. The scaling is done on logarithms, so that no difference between
    logits is too large for it.
    """
    for _ in range(iterations):
        columns = logits.logsumexp(1)  # [G, K]
        logits = logits - collectives.stack(columns).logsumexp(0)[:, None]
        logits = logits.log_softmax(2)
    return logits.exp()
