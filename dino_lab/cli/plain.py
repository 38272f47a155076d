"""The progress of a run as lines, for logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dino_lab.cli.formatting import TimeLeft, duration, number
from dino_lab.errors import printable
from dino_lab.runs.rows import scores

if TYPE_CHECKING:
    from dino_lab.spec.model import Spec
    from dino_lab.training.build import Run
    from dino_lab.training.diagnostics import Verdict
    from dino_lab.training.loop import Row


class PlainView:
    """One line every few seconds, and for every evaluation and change of verdict."""

    def __init__(
        self, spec: Spec, device: str, *, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.spec, self.device, self.every, self._clock = spec, device, every, clock
        self._printed = float("-inf")
        self._headline = ""
        self._left = TimeLeft(clock)

    def started(self, run: Run, folder: Path, step: int) -> None:
        """Print what runs where, and what was found of the data."""
        from dino_lab.building.data_check import data_lines

        resumed = f", resumed at step {step}" if step else ""
        _print(printable(f"{self.spec.name} on {self.device}, {folder}{resumed}"))
        for text in data_lines(run.data, run.evaluation_data, run.left_out):
            _print(text)
        for text in run.said:
            _print(printable(text))
        self._left.start(step)

    def row(self, row: Row, verdict: Verdict) -> None:
        """Print the row if it is time, or if it has a score or another verdict."""
        if row.step == 0:  # the evaluation before training
            self._left.restart()
        news = verdict.headline != self._headline or scores(row.numbers) or row.step == row.total
        if not news and self._clock() - self._printed < self.every:
            return
        self._printed = self._clock()
        left = self._left.seconds(row.step, row.total)
        _print(line(row, self.spec.train.epochs, verdict.headline, left))
        if verdict.headline != self._headline:
            _print(printable(verdict.sentence))
        self._headline = verdict.headline

    def progressed(self, step: int, total: int) -> None:
        """Nothing: lines are for rows."""

    def saved(self, step: int) -> None:
        """Nothing: a checkpoint a minute is no news."""


def line(row: Row, epochs: int, headline: str, left: float | None) -> str:
    """A row in one line; `left` is the time to the end of the run in seconds, where it is known."""
    n = row.numbers
    parts = [f"step {row.step}/{row.total}", f"epoch {row.epoch:.2f}/{epochs}"]
    parts += [f"{key} {number(n[key])}" for key in ("loss", "lr") if key in n]
    if "entropy" in n:
        of = f" of {number(n['entropy_max'])}" if "entropy_max" in n else ""
        parts.append(f"entropy {number(n['entropy'])}{of}")
    if "images_per_second" in n:
        parts.append(f"{n['images_per_second']:.0f} images/s")
    if left:
        parts.append(f"{duration(left)} left")
    parts += [f"{printable(key)} {value:.4f}" for key, value in scores(n).items()]
    return "  ".join([*parts, headline])


def _print(text: str) -> None:
    print(text, flush=True)
