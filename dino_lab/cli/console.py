"""Where words go: a terminal gets colour, everything else plain lines."""

from __future__ import annotations

import re
import sys
import textwrap
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

EVERY = 5.0  # seconds between two lines of progress
GAP = "  "
NO_BREAK = "\N{NO-BREAK SPACE}"  # in what counts as one word: a bound, `>= 0`, and a short list, `[0.4, 1]`


def console() -> Console:
    """The console of standard output; text is never read as markup, nor decorated by guesses."""
    return Console(markup=False, highlight=False, emoji=False)


class Progress:
    """A line every few seconds of how many images are done."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.began = self.said = time.monotonic()
        self.file = file or sys.stdout

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.said >= EVERY:
            rate = done / (now - self.began)
            print(f"{done} of {total} images, {rate:.0f} images/s", file=self.file, flush=True)
            self.said = now

    def end(self, written: int) -> str:
        """How many images were written, and in what time."""
        seconds = time.monotonic() - self.began
        return f"{written} written now in {seconds:.0f} s" if written else "nothing was missing"


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, headed: bool = False) -> None:
    """Columns: with colour on a terminal, else padded with blanks and never wrapped, `headed` by headers."""
    out = console()
    if not out.is_terminal:
        widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
        for row in [headers, *rows] if headed else rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    table = Table(*headers, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(Text(row[0], "cyan"), Text(row[1], "bold"), *map(Text, row[2:]))
    out.print(table)


def wrapped_table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of at most `width` characters, but for words that are longer; the first column is never wrapped.

    Where not even the longest words of all columns fit side by side, cells stand below each other.
    """
    rows = [[_glued(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    first = max(map(len, columns[0]))
    widths = _widths(columns[1:], width - first - len(GAP) * (len(columns) - 1))
    if widths is None:
        return [line for row in rows for line in _stacked(row, width)]
    return [line for row in rows for line in _side_by_side(row, [first, *widths])]


def _glued(cell: str) -> str:
    cell = re.sub(r"([<>]=?) (?=\S)", rf"\1{NO_BREAK}", cell)
    return re.sub(r"\[[^\]]{1,12}\]", lambda match: match[0].replace(" ", NO_BREAK), cell)


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """A width for each column, such that all are wrapped about as often; None where words do not fit."""
    whole = [max(map(len, column)) for column in columns]
    widths = [
        max((len(word) for cell in column for word in cell.split(" ")), default=0) for column in columns
    ]
    if sum(widths) > room:
        return None
    while widths != whole and sum(widths) < room:
        tightest = max(range(len(whole)), key=lambda i: whole[i] / max(1, widths[i]))
        widths[tightest] += 1
    return widths


def _side_by_side(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [_wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [
        GAP.join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*cells, fillvalue="")
    ]


def _stacked(row: Sequence[str], width: int) -> list[str]:
    first, *rest = row
    return [
        first,
        *(f"{GAP}{line}" for cell in rest for line in _wrap(cell, max(1, width - len(GAP))) if line),
    ]


def _wrap(cell: str, width: int) -> list[str]:
    lines = textwrap.wrap(cell, max(1, width), break_long_words=False, break_on_hyphens=False)
    return [line.replace(NO_BREAK, " ") for line in lines] or [""]
