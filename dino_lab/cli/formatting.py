"""Numbers, times and scores as people say them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

if TYPE_CHECKING:
    from dino_lab.training.diagnostics import Verdict


def verdict_text(verdict: Verdict) -> Text:
    """A verdict's sentence, its first words green where it learns and red where it has collapsed."""
    colour = "red" if verdict.collapsed else {"learning": "green"}.get(verdict.name, "cyan")
    text = Text.assemble(("● ", f"bold {colour}"), verdict.sentence)
    text.stylize(f"bold {colour}", 2, 2 + len(verdict.name))
    return text


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:20:00`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"
