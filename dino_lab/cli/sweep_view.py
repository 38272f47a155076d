"""The progress of a sweep: lines for logs and pipes, a table that redraws itself on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dino_lab.cli.formatting import duration, number

if TYPE_CHECKING:
    from dino_lab.runs.status import Ending
    from dino_lab.sweeps.processes.trial import Task

STYLES = {"finished": "green", "interrupted": "yellow", "stopped": "yellow"}


class SweepView:
    """A line for each trial that starts, scores or ends."""

    def __init__(self, metric: str, trials: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.metric, self.trials, self._clock = metric, trials, clock
        self.over = 0
        self.now: dict[str, dict[str, Any]] = {}  # by label, what is known of those that run
        self._began = clock()

    def row(self, task: Task, numbers: Mapping[str, Any]) -> None:
        """A trial has started, or written a row."""
        if task.label not in self.now:
            step = f", resumed at step {numbers['step']}" if numbers["step"] else ""
            self.say(f"{task.label}: started, {task.folder}{step}")
        elif self.metric in numbers:
            self.say(f"{task.label}: epoch {numbers['epoch']:.2f}, {self.metric} {numbers[self.metric]:.4f}")
        self.now.setdefault(task.label, {}).update(numbers)

    def ended(self, task: Task, ending: Ending) -> None:
        """A trial has ended."""
        self.over += ending.status != "interrupted"
        known = self.now.pop(task.label, {})
        score = f", {self.metric} {known[self.metric]:.4f}" if self.metric in known else ""
        if ending.status == "interrupted" and not known:
            return  # it was only waiting
        reason = f": {ending.reason}" if ending.reason else ""
        self.say(f"{task.label}: {ending.status}{reason}{score} ({self.over} of {self.trials}{self._left()})")

    def died(self, task: Task) -> None:
        """The process of a trial died; the trial goes on in another."""
        self.now.pop(task.label, None)
        self.say(f"{task.label}: its process died; it goes on from its last checkpoint")

    def say(self, text: str) -> None:
        """One line."""
        print(text, flush=True)

    def _left(self) -> str:
        if not 0 < self.over < self.trials:
            return ""
        spent = self._clock() - self._began
        return f", about {duration(spent / self.over * (self.trials - self.over))} left"


class LiveSweepView(SweepView):
    """The trials that run now, and the last that ended."""

    SHOWN = 8  # lines about what has happened

    def __init__(self, metric: str, trials: int, console: Console) -> None:
        super().__init__(metric, trials)
        self._said: list[str] = []
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> LiveSweepView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def say(self, text: str) -> None:
        """Keep the last lines."""
        self._said = [*self._said, text][-self.SHOWN :]

    def render(self) -> RenderableType:
        """The table, as it is now."""
        table = Table("trial", "step", "loss", self.metric, "images/s", box=None, header_style="bold")
        for label, known in list(self.now.items()):
            cells = [number(known[key]) if key in known else "" for key in ("loss", self.metric)]
            rate = f"{known['images_per_second']:.0f}" if "images_per_second" in known else ""
            table.add_row(label, f"{known['step']}/{known['total']}", *cells, rate)
        head = Text(f"{self.over} of {self.trials} trials{self._left()}", "bold")
        return Group(head, table, *(Text(line, "dim") for line in self._said))
