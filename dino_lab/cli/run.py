"""The verb that trains."""

from __future__ import annotations

import gc
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import (
    CHECKPOINT_SECONDS,
    CheckpointEvery,
    Device,
    Plugins,
    Runs,
    Settings,
    SpecPath,
)
from dino_lab.loggers.names import LoggerName
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from dino_lab.cli.interrupt import Interrupt
    from dino_lab.protocols import Data
    from dino_lab.spec.model import Spec
    from dino_lab.training.trainer import Listener, Outcome

EXIT_CODES = {
    "finished": 0,
    "already finished": 0,
    "interrupted": 130,
    "stopped": 0,
    "collapsed": 1,
    "failed": 1,
}


Loggers = Annotated[
    list[LoggerName] | None,
    typer.Option(
        metavar="LOGGER",
        envvar="DINO_LAB_LOG",
        help="Send the rows there too: wandb, mlflow or trackio; repeatable.",
        show_default=False,
    ),
]


def run(
    spec: SpecPath,
    settings: Settings = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    plugin: Plugins = None,
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of torch on the CPU.", show_default=False)
    ] = None,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Go on with other data than the run began with.")
    ] = False,
    log: Loggers = None,
) -> None:
    """Train what a spec describes, or go on where it was stopped."""
    from dino_lab.cli.console import console
    from dino_lab.cli.interrupt import Interrupt

    out = console()
    began = time.monotonic()
    with Interrupt(announce=not out.is_terminal) as interrupt:
        load_plugins(plugin)
        from dino_lab.building.execution import choose_device
        from dino_lab.cli.summary import Notes, print_summary
        from dino_lab.cli.validate import located
        from dino_lab.loggers.forward import Forward
        from dino_lab.registry import registry
        from dino_lab.spec.file import load
        from dino_lab.training.trainer import FitOptions, fit

        document = load(spec, settings or ())
        target = choose_device(device)
        _set_threads(threads)
        gc.enable()  # see __main__.py
        notes, forward = Notes(), Forward(log or ())
        with located(document), forward, _view(document.spec, str(target), out, interrupt) as view:
            outcome = fit(
                document.spec,
                registry,
                FitOptions(runs, target, checkpoint_every, accept_data),
                listeners=[notes, forward, view],
                stop=interrupt,
            )
            forward.status = outcome.status
    print_summary(outcome, notes, time.monotonic() - began, out)
    if picture := _picture(outcome, notes.data, target):
        out.print(picture, soft_wrap=True)
    for name, place in forward.places.items():
        out.print(f"{name}: {place}", soft_wrap=True)
    raise typer.Exit(EXIT_CODES[outcome.status])


def _picture(outcome: Outcome, data: Data | None, device: torch.device) -> str:
    """The line about the picture of what was learned, which is drawn where training has come to its end."""
    if data is None or outcome.status not in ("finished", "collapsed"):
        return ""
    from dino_lab.errors import first_line, printable
    from dino_lab.registry import registry
    from dino_lab.reports.learned_picture import write_learned

    try:
        path = write_learned(outcome.folder, registry, device, data)
    except Exception as error:  # whatever a component of a plugin does: the run itself has succeeded
        return f"\nno picture of what it learned: {printable(first_line(error))}"
    return f"\nwhat it learned, before and after: {printable(str(path))}"


def _set_threads(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _view(spec: Spec, device: str, out: Console, interrupt: Interrupt) -> AbstractContextManager[Listener]:
    """The live panel on a terminal, lines elsewhere."""
    if out.is_terminal:
        from dino_lab.cli.live import LiveView

        return LiveView(spec, device, out, stopping=interrupt)
    from dino_lab.cli.plain import PlainView

    return nullcontext(PlainView(spec, device))
