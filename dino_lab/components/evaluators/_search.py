"""A database ranked by cosine, some queries at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

COSINES = 2**22  # held at once


def rankings(
    queries: Tensor, database: Tensor, *, without_itself: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows int64 [B] of `queries` [N, D] and, for each, those of `database` [M, D], nearest first, [B, M].

    Equal cosines keep the order of the database. `without_itself` is for queries that are the database: each
    is left out of its own ranking, [B, M - 1].
    """
    database = F.normalize(database, dim=-1)
    for rows in torch.arange(len(queries), device=queries.device).split(max(1, COSINES // len(database))):
        cosine = F.normalize(queries[rows], dim=-1) @ database.T  # [B, M]
        if without_itself:
            cosine[torch.arange(len(rows), device=rows.device), rows] = -torch.inf
        order = cosine.argsort(dim=1, descending=True, stable=True)
        yield rows, order[:, :-1] if without_itself else order
