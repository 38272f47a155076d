"""What is said when a run has ended."""

from __future__ import annotations

import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from dino_lab.cli.formatting import duration, floors_in_words, verdict_text
from dino_lab.errors import printable
from dino_lab.runs.files import (
    BACKBONE,
    BEST,
    ENVIRONMENT,
    EVALUATIONS,
    IDENTITY,
    KEPT,
    LAST,
    LEARNED,
    ROWS,
    SPEC,
    STATUS,
)

if TYPE_CHECKING:
    from dino_lab.protocols import Data
    from dino_lab.training.build import Run
    from dino_lab.training.diagnostics import Verdict
    from dino_lab.training.loop import Row
    from dino_lab.training.trainer import Outcome

FILES = {
    SPEC: "the spec as run, every default written out",
    ENVIRONMENT: "versions and hardware",
    ROWS: "the logged numbers",
    "events.out.*": "the same for TensorBoard",
    LAST: "the checkpoint",
    KEPT.format("*"): "checkpoints of the epochs of train.keep",
    BEST: "the checkpoint of the highest score, of train.keep_best",
    STATUS: "how it ended",
    IDENTITY: "what decides the weights",
    BACKBONE: "the backbone, for plain timm",
    EVALUATIONS: "files of the evaluators, by step",
    LEARNED: "test images before and after training",
}
WORTH_SAYING = 0.05  # of the time in which images were waited for
STYLES = {"finished": "green", "already finished": "green", "interrupted": "yellow"}


class Notes:
    """A listener that keeps the data, the speed and the protocols for the summary."""

    def __init__(self) -> None:
        self.first_step = 0
        self.data: tuple[Data, Data] | None = (
            None  # to train and to evaluate on, unless the run was over before
        )
        self.protocols: list[str] = []
        self.rates: list[float] = []
        self.waits: list[float] = []

    def started(self, run: Run, folder: Path, step: int) -> None:
        """Keep the data, and the protocols of evaluators and floors."""
        from dino_lab.evaluation.floors import floors_protocol, pixel_side
        from dino_lab.protocols import GivesFloors, ability

        self.first_step, self.data = step, (run.data, run.evaluation_data)
        evaluators = run.evaluators.values()
        self.protocols = [evaluator.protocol for evaluator in evaluators]
        if any(ability(evaluator, GivesFloors) for evaluator in evaluators):
            self.protocols.append(floors_protocol(pixel_side(run.evaluation_data)))

    def row(self, row: Row, verdict: Verdict) -> None:
        """Keep the speed."""
        if "images_per_second" in row.numbers:
            self.rates.append(row.numbers["images_per_second"])
            self.waits.append(row.numbers.get("data_wait", 0.0))

    def progressed(self, step: int, total: int) -> None:
        """Nothing."""

    def saved(self, step: int) -> None:
        """Nothing."""


def print_summary(
    outcome: Outcome, notes: Notes, seconds: float, console: Console, *, fold: bool = False
) -> None:
    """Print how the run ended, what it learned, where its files are, and what can be done next.

    `fold` breaks long lines at the console's width; a terminal does that itself, and copies them whole.
    """
    lines: list[Text | str] = ["", _headline(outcome, notes, seconds)]
    lines += _scores(outcome, console.width)
    lines += [f"  {printable(protocol)}" for protocol in notes.protocols if outcome.scores_after]
    lines.append(verdict_text(outcome.verdict, failed=outcome.status == "failed"))
    lines += ["", f"files in {printable(str(outcome.folder))}"]
    lines += [f"  {name:22}{what}" for name, what in FILES.items() if any(outcome.folder.glob(name))]
    if load := _loading(outcome.folder / BACKBONE):
        lines += ["", "load the backbone:", *(f"  {line}" for line in load.splitlines())]
    if outcome.status == "interrupted":
        lines += ["", f"to continue, run the same command again: {_command()}"]
    for line in lines:
        console.print(line, soft_wrap=not fold)


def _headline(outcome: Outcome, notes: Notes, seconds: float) -> Text:
    done = f"{outcome.step} of {outcome.total} steps"
    if outcome.status == "already finished":
        how = f": {done}, in {duration(outcome.seconds)}; nothing was done now"
    else:
        speed = f", {statistics.median(notes.rates):.0f} images/s" if notes.rates else ""
        if notes.waits and (wait := statistics.median(notes.waits)) > WORTH_SAYING:
            speed += f", {wait:.0%} of the time waiting for data"
        resumed = f" (resumed at step {notes.first_step})" if notes.first_step else ""
        how = f": {done}{resumed}, {duration(seconds)}{speed}"
    style = STYLES.get(outcome.status, "red")
    reason = f": {printable(outcome.reason)}" if outcome.reason else ""
    return Text.assemble((outcome.status, f"bold {style}"), how, (reason, style))


def _scores(outcome: Outcome, width: int) -> list[Text]:
    """Each score before training and after it, and without learning.

    One of the first two where there was a single evaluation; floors for which there is no room in the line
    stand below it.
    """
    from dino_lab.runs.folder import RunFolder

    rows = RunFolder(outcome.folder).rows()
    lines = []
    for name, after in outcome.scores_after.items():
        before = outcome.scores_before.get(name)
        steps = [row["step"] for row in rows if name in row]
        text = Text.assemble((printable(name), "bold"), ": ")
        if len(steps) != 1 and before is not None:
            text.append(f"{before:.4f} before training, ")
        if steps == [0]:
            text.append(f"{after:.4f} before training, not evaluated since")
        else:
            text.append(f"{after:.4f}", "bold").append(" after")
        lines.append(text)
        if floors := floors_in_words(outcome.floors.get(name, {})):
            if len(text) + len(floors) + len(" ()") <= width:
                text.append(f" ({floors})", "dim")
            else:
                lines.append(Text(f"  {floors}", "dim"))
    return lines


def _loading(file: Path) -> str | None:
    """The lines that load the exported backbone; the file itself carries them."""
    if not file.exists():
        return None
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return (weights.metadata() or {}).get("load")


def _command() -> str:
    return shlex.join(["dino-lab", *sys.argv[1:]])
