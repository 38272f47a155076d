"""Draw docs/terminal.svg from a finished run: what its terminal showed last.

python docs/terminal_picture.py runs/quickstart/<hash> experiments/quickstart.yaml
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from dino_lab.cli.live import LiveView
from dino_lab.cli.summary import Notes, print_summary
from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.training.diagnostics import Reader
from dino_lab.training.loop import Row
from dino_lab.training.trainer import LEAST_WARM_UP, Outcome, verdict_of

WIDTH = 108  # characters


def picture(folder: Path, command: str) -> str:
    """The SVG of the panel and the summary of a finished run."""
    run = RunFolder(folder)
    spec = run.spec(registry)
    status = run.status()
    if status.state != "finished":
        raise UserError(f"{folder}: this run is not finished")
    device = run.environment().get("device", "cpu")
    console = Console(
        record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, markup=False, highlight=False
    )
    seconds = 0.0
    view = LiveView(spec, device, console, clock=lambda: seconds)
    notes = Notes()
    notes.protocols = [registry.build("evaluator", params).protocol for params in spec.evaluators]
    view.started(open_run(folder, registry), folder, 0)  # type: ignore[arg-type]  # only its data are looked at
    reader = Reader(max(LEAST_WARM_UP, spec.optim.lr.warmup), status.floors)
    for numbers in run.rows():
        step, epoch = int(numbers.pop("step")), numbers.pop("epoch")
        row = Row(step, status.total, epoch, numbers)
        verdict = reader.read(numbers, step / row.total)
        view.row(row, verdict)
        notes.row(row, verdict)
    seconds = status.seconds
    console.print(f"$ {command}", style="bold")
    console.print(view.render())
    outcome = Outcome(
        "finished",
        folder,
        status.step,
        status.total,
        verdict_of(status),
        seconds,
        status.scores_before,
        status.scores_after,
        floors=status.floors,
    )
    print_summary(outcome, notes, seconds, console, fold=True)
    # Some renderers drop blanks at the start of a text unless told otherwise.
    return console.export_svg(title="dino-lab").replace("<svg ", '<svg xml:space="preserve" ', 1)


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("spec", help="the file that was run, as the picture's command line names it")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "terminal.svg")
    arguments = parser.parse_args()
    arguments.output.write_text(picture(arguments.folder, f"dino-lab run {arguments.spec}"), encoding="utf-8")


if __name__ == "__main__":
    main()
