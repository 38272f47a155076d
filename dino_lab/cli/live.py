"""The progress of a run as a panel that redraws itself, for terminals."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dino_lab.cli.formatting import TimeLeft, duration, number, verdict_text
from dino_lab.cli.interrupt import STOPPING
from dino_lab.errors import printable
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
BLOCKS = " ▁▂▃▄▅▆▇█"  # from empty to full, in eighths of a line
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
        self._stopping = stopping
        self._data: list[str] = []  # what was found of the data
        self.folder: Path | None = None
        self.step = self.total = 0
        self._epoch = 0.0
        self._left = TimeLeft(clock)
        self._numbers: dict[str, float] = {}
        self._histories: dict[str, History] = {}
        self._verdict: Verdict | None = None
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, vertical_overflow="crop"
        )

    def __enter__(self) -> LiveView:
        with ExitStack() as stack:
            stack.enter_context(without_echo())
            stack.enter_context(self._live)
            self._opened = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(kind, error, trace)

    def started(self, run: Run, folder: Path, step: int) -> None:
        """Leave the preparation, and take over the curves of an earlier session."""
        from dino_lab.building.data_check import data_lines
        from dino_lab.runs.folder import RunFolder

        found = data_lines(run.data, run.evaluation_data, run.left_out)
        self._data = [*found, *map(printable, run.said)]
        for numbers in RunFolder(folder).rows() if step else []:
            self._take({key: value for key, value in numbers.items() if key not in ("step", "epoch")})
        self.folder, self.step = folder, step
        self._left.start(step)

    def row(self, row: Row, verdict: Verdict) -> None:
        """Take the latest numbers."""
        self.step, self.total, self._epoch, self._verdict = row.step, row.total, row.epoch, verdict
        self._take(row.numbers)
        if row.step == 0:  # the evaluation before training
            self._left.restart()

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
        name = printable(self.spec.name)
        title = Text.assemble((name, "bold"), f" · {self.device}")
        return Panel(
            Group(*self._parts()), title=title, title_align="left", border_style="dim", padding=(0, 1)
        )

    def _parts(self) -> list[RenderableType]:
        if self.folder is None:
            return [Text("preparing data and networks ...", "dim")]
        found = [Text(line, "dim") for line in self._data]
        parts: list[RenderableType] = [Text(printable(str(self.folder)), "dim"), *found, self._bar()]
        curves, table = self._curves(), self._table()
        parts += [Text(), *curves] if curves else []
        # Above the numbers: what does not fit into the terminal is left out below.
        if self._verdict is not None:
            parts += [Text(), verdict_text(self._verdict)]
        if self._stopping():
            parts.append(Text(STOPPING, "yellow"))
        parts += [Text(), *table] if table else []
        return parts

    def _bar(self) -> RenderableType:
        facts = [f"epoch {self._epoch:.1f}/{self.spec.train.epochs}", f"step {self.step}/{self.total or '?'}"]
        if "images_per_second" in self._numbers:
            facts.append(f"{self._numbers['images_per_second']:.0f} images/s")
        left = self._left.seconds(self.step, self.total) if self.total else None
        if left is not None:
            facts.append(f"{duration(left)} left" if left else f"in {duration(self._left.spent)}")
        bar = ProgressBar(
            total=self.total or 1, completed=self.step, complete_style="cyan", finished_style="green"
        )
        words = Text("   ".join(facts))
        return _columns([bar, words], [1] if self.console.width < NARROW else [1, 0])

    def _curves(self) -> list[RenderableType]:
        n = self._numbers
        drawn: list[RenderableType] = []
        if "loss" in n:
            drawn.append(self._curve("loss", "loss", "magenta", None, None))
        if "entropy" in n:
            drawn.append(self._curve("entropy", "entropy", "blue", 0.0, n.get("entropy_max")))
        if score := main_score(scores(n)):
            drawn.append(self._curve(score, score, "green", 0.0, None))
        if self.console.width < NARROW or not drawn:
            return drawn
        return [_columns(drawn, [1] * len(drawn))]

    def _curve(
        self, key: str, label: str, style: str, low: float | None, high: float | None
    ) -> RenderableType:
        """A caption and three lines of blocks; without bounds, those of the numbers."""
        values = self._histories[key].values
        wide = self.console.width >= NARROW
        width = max(8, (self.console.width - 8) // 3 if wide else self.console.width - 4)
        caption = Text.assemble((f"{printable(label)} ", style), (number(self._numbers[key]), "bold"))
        caption.no_wrap = True
        more: list[str] = []
        if key == "entropy" and high is not None:
            more = [f" of {number(high)}", " = ln K"]
        elif len(values) > 1:
            more = [f" from {number(values[0])}"]
        # As far as there is room: a column has two blanks on its right, but for the last, that of the score.
        room = (self.console.width - 4) // 3 - (2 if key in ("loss", "entropy") else 0)
        for part in more:
            if len(caption) + len(part) <= (room if wide else width):
                caption.append(part, "dim")
        top = high if high is not None else max(values, default=1.0)
        bottom = low if low is not None else min(values, default=0.0)
        lines = curve(values, width, 3, bottom, top)
        return Group(caption, *(Text(text, style, no_wrap=True, overflow="crop") for text in lines))

    def _table(self) -> list[RenderableType]:
        shown = {label: self._numbers[key] for key, label in NUMBERS.items() if key in self._numbers}
        shown |= {key: value for key, value in self._numbers.items() if key.startswith(REGULARIZER)}
        main = main_score(scores(self._numbers))
        shown |= {key: value for key, value in scores(self._numbers).items() if key != main}
        cells = [
            Text.assemble((f"{printable(label)} ", "dim"), number(value)) for label, value in shown.items()
        ]
        per_row = 3 if self.console.width >= NARROW else 2
        room = (self.console.width - 4) // per_row - 2
        short = [cell for cell in cells if len(cell) <= room]
        long = [cell for cell in cells if len(cell) > room]  # names such as attention_masks.mean_jaccard_60
        return [_columns(some, [1] * count) for some, count in ((short, per_row), (long, 1)) if some]


def _columns(cells: Sequence[RenderableType], ratios: list[int]) -> Table:
    """Cells in rows of as many as there are ratios; a ratio of 0 is as wide as its content."""
    grid = Table.grid(padding=(0, 2), expand=True)
    for ratio in ratios:
        grid.add_column(ratio=ratio or None)
    for start in range(0, len(cells), len(ratios)):
        grid.add_row(*cells[start : start + len(ratios)])
    return grid


@contextmanager
def without_echo() -> Iterator[None]:
    """A terminal that does not echo keys: ^C or Enter would move the panel, and leave a border behind."""
    import termios

    try:
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (OSError, ValueError, termios.error):  # standard input is no terminal
        yield
        return
    silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(terminal, termios.TCSADRAIN, silent)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


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
