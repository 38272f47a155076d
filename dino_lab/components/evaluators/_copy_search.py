"""Copy detection: the copies, and the scores of finding their originals."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.evaluators import _copydays, _picture
from dino_lab.components.evaluators._average_precision import trapezoid_average_precision
from dino_lab.components.evaluators._copies import copy
from dino_lab.components.evaluators._image_sets import Set
from dino_lab.components.evaluators._picture import Found
from dino_lab.components.evaluators._search import rankings
from dino_lab.imaging.decode import read_rgb

RESULTS = 8  # of a row of the picture
ROWS = 8


@dataclass(frozen=True)
class Copies:
    """Copies of one kind."""

    rows: list[int]  # of their originals
    open: Callable[[int], Image.Image]  # by position


def shown(originals: Set, others: list[Path]) -> Callable[[list[int]], dict[int, Image.Image]]:
    """How to look at rows of the originals, or after them at other files."""

    def show(rows: list[int]) -> dict[int, Image.Image]:
        first = originals.show([row for row in rows if row < originals.count])
        rest = {row: read_rgb(others[row - originals.count]) for row in rows if row >= originals.count}
        return first | rest

    return show


def generated(images: Set, kinds: Iterable[str], count: int, seed: int) -> dict[str, Copies]:
    """Copies of at most `count` images, at equal distances, by kind."""
    rows = _picture.spread(count, images.count)
    originals = images.show(rows)

    def copies(kind: str) -> Copies:
        return Copies(rows, lambda position: copy(originals[rows[position]], kind, seed, rows[position]))

    return {kind: copies(kind) for kind in kinds}


def found_in(layout: _copydays.CopydaysLayout) -> dict[str, Copies]:
    """Copies of the layout, by block."""

    def copies(block: list[tuple[Path, int]]) -> Copies:
        return Copies([row for _, row in block], lambda position: read_rgb(block[position][0]))

    return {name: copies(block) for name, block in layout.blocks.items()}


def scores(database: Tensor, queries: Tensor, rows: list[int], top: int | None) -> tuple[float, float]:
    """Mean average precision among the first `top`, and the share of queries whose original comes first."""
    averages, first = [], 0
    origin = torch.tensor(rows, device=database.device)
    for some, order in rankings(queries, database):
        relevant = (order == origin[some, None])[:, :top]
        averages.append(trapezoid_average_precision(relevant, torch.ones_like(some)))
        first += int(relevant[:, 0].sum())
    return float(torch.cat(averages).mean()), first / len(rows)


def picture(
    database: Tensor,
    queries: dict[str, Tensor],
    copies: dict[str, Copies],
    show: Callable[[list[int]], dict[int, Image.Image]],
) -> bytes:
    """Some copies of each kind, their first results, and the rank of the original."""
    each = max(1, ROWS // len(queries))
    drawn = []
    for kind, described in queries.items():
        rows = copies[kind].rows
        for position in _picture.spread(each, len(rows)):
            _, order = next(iter(rankings(described[position : position + 1], database)))
            first = order[0, :RESULTS].tolist()
            rank = int((order[0] == rows[position]).nonzero()[0, 0]) + 1
            shown = show([*first, rows[position]])
            drawn.append(
                Found(
                    [(copies[kind].open(position), kind), (shown[rows[position]], f"at rank {rank}")],
                    [(shown[row], _mark(place + 1, rank)) for place, row in enumerate(first)],
                    [str(row) for row in first],
                )
            )
    return _picture.draw(drawn, "copies, and what comes first", ("copy", "original"))


def _mark(place: int, rank: int) -> bool | None:
    """The original is right, results before it are wrong, results behind it are neither."""
    return None if place > rank else place == rank
