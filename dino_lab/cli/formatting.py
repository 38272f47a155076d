"""Verdicts, durations and numbers, as the terminal shows them, and the time that a run still takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rich.text import Text

from dino_lab.errors import printable

if TYPE_CHECKING:
    from dino_lab.training.diagnostics import Verdict


COLOURS = {"good": "green", "doubtful": "yellow", "bad": "red", "waiting": "cyan"}


def verdict_text(verdict: Verdict, *, failed: bool = False) -> Text:
    """A verdict's sentence with a coloured headline.

    Green: learning, with a score above that before training. Yellow: doubtful. Red: collapsed. Blue: warming
    up, or learning as far as the loss tells. Of a run that `failed` the verdict is the last one before that,
    and has no colour.
    """
    sentence = printable(verdict.sentence)
    if failed:
        return Text(f"○ before it failed: {sentence}", "dim")
    colour = COLOURS[verdict.tone]
    text = Text.assemble(("● ", f"bold {colour}"), sentence)
    text.stylize(f"bold {colour}", 2, 2 + len(verdict.headline))
    return text


def floors_in_words(floors: Mapping[str, float]) -> str:
    """`chance 0.100, raw pixels 0.341`."""
    return ", ".join(f"{printable(name)} {value:.3f}" for name, value in floors.items())


def duration(seconds: float) -> str:
    """`0:42`, `12:05`, `3:20:00`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def number(value: float) -> str:
    """Four digits that matter."""
    return f"{value:.4g}"


class TimeLeft:
    """An estimate of the time that a run still takes, from the steps made since `start`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.start(0)

    def start(self, step: int) -> None:
        """Count from `step`, and from now on."""
        self._first = step
        self.restart()

    def restart(self) -> None:
        """Count from now on: the time until now, such as an evaluation before the first step, is left out."""
        self._began = self._clock()

    @property
    def spent(self) -> float:
        """Seconds since `start`."""
        return self._clock() - self._began

    def seconds(self, step: int, total: int) -> float | None:
        """Seconds from `step` to `total`; None before the first step."""
        made = step - self._first
        return self.spent / made * (total - step) if made > 0 else None
