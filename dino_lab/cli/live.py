"""The progress of a run as a panel that redraws itself, for terminals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dino_lab.cli.formatting import duration, number, verdict_text
from dino_lab.cli.interrupt import STOPPING
from dino_lab.cli.terminal_curves import History, curve
from dino_lab.runs.rows import REGULARIZER, main_score, scores

if TYPE_CHECKING:
    from dino_lab.spec.model import Spec
    from dino_lab.training.build import Run
    from dino_lab.training.diagnostics import Verdict
    from dino_lab.training.loop import Row

NUMBERS = {
    "kl": "KL to the target",
    "accuracy": "pretext accuracy",
    "feature_spread": "feature spread",
    "effective_rank": "effective rank",
    "center_norm": "centre norm",
    "gradient_norm": "gradient norm",
    "lr": "learning rate",
    "weight_decay": "weight decay",
}
NARROW = 72  # columns; below, three curves do not fit side by side


class LiveView:
    """Header, progress, curves of loss, entropy and accuracy, the latest numbers, and the verdict."""

    def __init__(
        self,
        spec: Spec,
        device: str,
        console: Console,
        *,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec, self.device, self.console = spec, device, console
        self._stopping, self._clock = stopping, clock
        self.folder: Path | None = None
        self.step = self.total = self._first_step = 0
        self._epoch = 0.0
        self._began = clock()
        self._numbers: dict[str, float] = {}
        self._histories: dict[str, History] = {}
        self._verdict: Verdict | None = None
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, vertical_overflow="crop"
        )

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def started(self, run: Run, folder: Path, step: int) -> None:
        """Leave the preparation, with the curves of an earlier session; the clock for what is left starts."""
        from dino_lab.runs.folder import RunFolder

        for numbers in RunFolder(folder).rows() if step else []:
            self._take({key: value for key, value in numbers.items() if key not in ("step", "epoch")})
        self.folder, self.step, self._first_step, self._began = folder, step, step, self._clock()

    def row(self, row: Row, verdict: Verdict) -> None:
        """Take the latest numbers."""
        self.step, self.total, self._epoch, self._verdict = row.step, row.total, row.epoch, verdict
        self._take(row.numbers)

    def _take(self, numbers: dict[str, float]) -> None:
        self._numbers |= numbers
        for key, value in numbers.items():
            self._histories.setdefault(key, History()).add(value)

    def progressed(self, step: int, total: int) -> None:
        """Move the bar."""
        self.step, self.total = step, total

    def saved(self, step: int) -> None:
        """Nothing to show."""

    def render(self) -> RenderableType:
        """The panel, as it is now."""
        title = Text.assemble((self.spec.name, "bold"), f" · {self.spec.hash} · {self.device}")
        return Panel(
            Group(*self._parts()), title=title, title_align="left", border_style="dim", padding=(0, 1)
        )

    def _parts(self) -> list[RenderableType]:
        if self.folder is None:
            return [Text("preparing data and networks ...", "dim")]
        parts: list[RenderableType] = [Text(str(self.folder), "dim"), self._bar()]
        if self._numbers:
            parts += [Text(), self._curves(), Text(), self._table()]
        if self._verdict is not None:
            parts += [Text(), verdict_text(self._verdict)]
        if self._stopping():
            parts.append(Text(STOPPING, "yellow"))
        return parts

    def _bar(self) -> RenderableType:
        facts = [f"epoch {self._epoch:.1f}/{self.spec.train.epochs}", f"step {self.step}/{self.total or '?'}"]
        if "images_per_second" in self._numbers:
            facts.append(f"{self._numbers['images_per_second']:.0f} images/s")
        if self.total and self.step > self._first_step:
            spent = self._clock() - self._began
            left = spent / (self.step - self._first_step) * (self.total - self.step)
            facts.append(f"{duration(left)} left" if left else f"in {duration(spent)}")
        bar = ProgressBar(
            total=self.total or 1, completed=self.step, complete_style="cyan", finished_style="green"
        )
        words = Text("   ".join(facts))
        return _columns([bar, words], [1] if self.console.width < NARROW else [1, 0])

    def _curves(self) -> RenderableType:
        n = self._numbers
        drawn = [self._curve("loss", "loss", "magenta", None, None)]
        if "entropy" in n:
            drawn.append(self._curve("entropy", "entropy", "blue", 0.0, n.get("entropy_max")))
        if score := main_score(scores(n)):
            drawn.append(self._curve(score, score, "green", 0.0, None))
        if self.console.width < NARROW:
            return Group(*drawn)
        return _columns(drawn, [1] * len(drawn))

    def _curve(
        self, key: str, label: str, style: str, low: float | None, high: float | None
    ) -> RenderableType:
        """A caption and three lines of blocks; without bounds, those of the numbers."""
        values = self._histories[key].values if key in self._histories else []
        wide = self.console.width >= NARROW
        width = max(8, (self.console.width - 8) // 3 if wide else self.console.width - 4)
        caption = Text.assemble((f"{label} ", style), (number(self._numbers.get(key, math.nan)), "bold"))
        caption.no_wrap = True
        if key == "entropy" and high is not None:
            caption.append(f" of {number(high)} = ln K", "dim")
        elif len(values) > 1:
            caption.append(f" from {number(values[0])}", "dim")
        top = high if high is not None else max(values, default=1.0)
        bottom = low if low is not None else min(values, default=0.0)
        lines = curve(values, width, 3, bottom, top)
        return Group(caption, *(Text(text, style, no_wrap=True, overflow="crop") for text in lines))

    def _table(self) -> RenderableType:
        shown = {label: self._numbers[key] for key, label in NUMBERS.items() if key in self._numbers}
        shown |= {key: value for key, value in self._numbers.items() if key.startswith(REGULARIZER)}
        main = main_score(scores(self._numbers))
        shown |= {key: value for key, value in scores(self._numbers).items() if key != main}
        cells: list[RenderableType] = [
            Text.assemble((f"{label} ", "dim"), number(value)) for label, value in shown.items()
        ]
        per_row = 3 if self.console.width >= NARROW else 2
        return _columns(cells, [1] * per_row)


def _columns(cells: list[RenderableType], ratios: list[int]) -> Table:
    """Cells in rows of as many as there are ratios; a ratio of 0 is as wide as its content."""
    grid = Table.grid(padding=(0, 2), expand=True)
    for ratio in ratios:
        grid.add_column(ratio=ratio or None)
    for start in range(0, len(cells), len(ratios)):
        grid.add_row(*cells[start : start + len(ratios)])
    return grid
