"""Curves made of block characters."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = " ▁▂▃▄▅▆▇█"


class History:
    """A sequence of numbers that keeps its course, not its length: when full, neighbours are averaged."""

    def __init__(self, most: int = 512) -> None:
        self.most = most
        self._sums: list[float] = []
        self._counts: list[int] = []
        self._per_bin = 1

    def add(self, value: float) -> None:
        """Append one number; what is not finite is left out."""
        if value - value != 0:
            return
        if not self._counts or self._counts[-1] == self._per_bin:
            self._halve_if_full()
            self._sums.append(0.0)
            self._counts.append(0)
        self._sums[-1] += value
        self._counts[-1] += 1

    def _halve_if_full(self) -> None:
        if len(self._sums) < self.most:
            return
        self._sums = [a + b for a, b in zip(self._sums[::2], self._sums[1::2], strict=True)]
        self._counts = [a + b for a, b in zip(self._counts[::2], self._counts[1::2], strict=True)]
        self._per_bin *= 2

    @property
    def values(self) -> list[float]:
        """At most `most` numbers, oldest first."""
        return [total / count for total, count in zip(self._sums, self._counts, strict=True)]


def resample(values: Sequence[float], width: int) -> list[float]:
    """`width` numbers with the course of `values`: means where those are more, repeats where fewer."""
    count = len(values)
    bins = (
        values[i * count // width : max((i + 1) * count // width, i * count // width + 1)]
        for i in range(width)
    )
    return [sum(part) / len(part) for part in bins]


def curve(values: Sequence[float], width: int, height: int, low: float, high: float) -> list[str]:
    """`height` lines of `width` blocks, top line first; `low` is one eighth of a block, `high` is full."""
    if not values:
        return [" " * width] * height
    span = (high - low) or 1.0
    eighths = [
        max(1, min(8 * height, round((value - low) / span * 8 * height))) for value in resample(values, width)
    ]
    return [
        "".join(BLOCKS[max(0, min(8, level - 8 * line))] for level in eighths)
        for line in reversed(range(height))
    ]
