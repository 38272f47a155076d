"""The progress of a sweep: lines for logs and pipes, a table that redraws itself on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dino_lab.cli.formatting import duration, number

if TYPE_CHECKING:
    from dino_lab.runs.status import Status
    from dino_lab.sweeps.processes.trial import Task
    from dino_lab.sweeps.session import Overview

STYLES = {"finished": "green", "interrupted": "yellow", "stopped": "yellow"}


@contextmanager
def sweep_view(console: Console, *, redraw: bool) -> Iterator[SweepView]:
    """A table that redraws itself on a terminal, if asked for; else lines."""
    if not (redraw and console.is_terminal):
        yield SweepView()
        return
    view = LiveSweepView(console)
    try:
        yield view
    finally:
        view.close()


class SweepView:
    """The plan, then a line for each trial that starts, scores or ends."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.metric, self.trials, self.over = "", 0, 0
        self.now: dict[str, dict[str, Any]] = {}  # the last numbers of the trials that run, by label
        self._clock, self._began = clock, clock()

    def planned(self, overview: Overview) -> None:
        """Print the plan."""
        from dino_lab.cli.sweep_text import print_plan

        print_plan(overview)
        self.metric, self.trials = overview.plan.study.metric, overview.trials
        self._began = self._clock()

    def waiting(self, task: Task) -> None:
        """Another process is training the trial's spec."""
        self.say(f"{task.label}: another process is training it; waiting for it, {task.folder}")

    def row(self, task: Task, numbers: Mapping[str, Any]) -> None:
        """A trial has started, or written a row."""
        if task.label not in self.now:
            step = f", resumed at step {numbers['step']}" if numbers["step"] else ""
            self.say(f"{task.label}: started, {task.folder}{step}")
        elif self.metric in numbers:
            self.say(f"{task.label}: epoch {numbers['epoch']:.2f}, {self.metric} {numbers[self.metric]:.4f}")
        self.now.setdefault(task.label, {}).update(numbers)

    def ended(self, task: Task, ending: Status) -> None:
        """A trial has ended."""
        self.over += ending.state != "interrupted"
        known = self.now.pop(task.label, {})
        score = f", {self.metric} {known[self.metric]:.4f}" if self.metric in known else ""
        if ending.state == "interrupted" and not known:
            return  # it had not started
        reason = f": {ending.reason}" if ending.reason else ""
        self.say(f"{task.label}: {ending.state}{reason}{score} ({self.over} of {self.trials}{self._left()})")

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

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._said: list[str] = []
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=4)

    def planned(self, overview: Overview) -> None:
        """Print the plan, and begin to draw if there is something to wait for."""
        super().planned(overview)
        if overview.trials:
            self._live.start()

    def close(self) -> None:
        """Draw for the last time."""
        self._live.stop()

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
