"""Where words go: a terminal gets colour, everything else plain lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """The console of standard output; text is never read as markup, nor decorated by guesses."""
    return Console(markup=False, highlight=False, emoji=False)


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
