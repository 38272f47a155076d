"""Nearest neighbours by cosine, a block of the bank at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.kernels.linear import linear

BLOCK = 2**16  # images of the bank compared with at once
BLOCK_BYTES = 2**27  # of cosines that are there at once
CANDIDATES = 32  # more than k, that a search in bfloat16 leaves to be compared again
GATHERED = 256  # images whose candidates are compared again at once

Search = Callable[[Tensor], tuple[Tensor, Tensor]]


def nearest(
    queries: Tensor, bank: Tensor, k: int, precision: torch.dtype = torch.float32
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of `queries` [N, D], and the k largest cosines [B, k] and where in `bank` they are, best first.

    In bfloat16, products are searched for k + 32 candidates, whose cosines are then taken in float32. The
    bank's mean is subtracted for the search, which changes no order but spreads the products: bfloat16 has 8
    bits, and features of one network often point the same way.
    """
    reference = F.normalize(bank, dim=-1)
    search = _exact(reference, k) if precision == torch.float32 else _coarse(reference, k, precision)
    rows = max(1, BLOCK_BYTES // (precision.itemsize * min(BLOCK, len(bank))))
    for start in range(0, len(queries), rows):
        at = slice(start, start + rows)
        yield at, *search(F.normalize(queries[at], dim=-1))


def _exact(reference: Tensor, k: int) -> Search:
    return lambda query: _largest(query, reference, k)


def _coarse(reference: Tensor, k: int, precision: torch.dtype) -> Search:
    centred = (reference - reference.mean(0)).to(precision)
    count = min(k + CANDIDATES, len(reference))

    def search(query: Tensor) -> tuple[Tensor, Tensor]:
        _, index = _largest(query.to(precision), centred, count)
        parts = [
            (reference[where] @ rows[:, :, None])[:, :, 0]  # [b, count]
            for rows, where in zip(query.split(GATHERED), index.split(GATHERED), strict=True)
        ]
        cosine, order = torch.cat(parts).topk(k)
        return cosine, index.gather(1, order)

    return search


def _largest(query: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest products [B, k] of query [B, D] with reference [N, D], and their rows; k is at most N."""
    found = query.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(reference), BLOCK):
        product = linear(query, reference[start : start + BLOCK])
        value, where = product.topk(min(k, product.shape[1]))
        found, index = torch.cat([found, value], 1), torch.cat([index, where + start], 1)
        found, order = found.topk(min(k, found.shape[1]))
        index = index.gather(1, order)
    return found, index
