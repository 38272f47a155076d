"""The verbs that go on from a run: fork and extend."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import (
    CHECKPOINT_SECONDS,
    CheckpointEvery,
    Device,
    Plugins,
    Processes,
    Runs,
    Settings,
)
from dino_lab.cli.run import Job, Loggers, Threads
from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.files import SPEC

if TYPE_CHECKING:
    from dino_lab.spec.model import Spec

RunFolderPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="The folder of the run.", show_default=False)
]
To = Annotated[
    Path | None,
    typer.Option("--to", metavar="FILE.yaml", help="Write its spec here, and train nothing."),
]


def fork(
    run: RunFolderPath,
    at: Annotated[int, typer.Option("--at", metavar="EPOCH", min=1, help="Of the run; it kept that epoch.")],
    settings: Settings = None,
    to: To = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    processes: Processes = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    plugin: Plugins = None,
    threads: Threads = None,
    log: Loggers = None,
) -> None:
    """Go on from a kept epoch of a run with other settings, to the end that the run has.

    Epochs are kept by train.keep, as in --set train.keep=[3]; the last checkpoint is one as well. The run
    stays as it is. Without --set the fork ends as the run did.
    """
    load_plugins(plugin)
    import torch

    from dino_lab.registry import registry
    from dino_lab.runs.folder import RunFolder
    from dino_lab.spec.file import dump_yaml, load_text
    from dino_lab.spec.stages import after
    from dino_lab.training.inherit import checkpoint_at

    folder = RunFolder(run)
    parent = folder.spec(registry)
    spec = load_text(dump_yaml(parent), str(run / SPEC), settings or [], registry).spec
    checkpoint_at(folder, at, torch.device("cpu"))
    if spec.train.epochs <= at:
        raise UserError(
            f"--at {at}: the fork has {spec.train.epochs} epochs, so none is left; --set train.epochs=N"
        )
    spec = spec.model_copy(update={"after": after(parent, at)})
    job = Job(run, [], runs, device, checkpoint_every, [], threads, False, log or [], parent=run)
    _go_on(job, spec, to, processes)


def extend(
    run: RunFolderPath,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Epochs more than it has.")],
    as_stage: Annotated[
        bool, typer.Option("--as-stage", help="Train them as a stage after the run, with its own schedules.")
    ] = False,
    to: To = None,
    runs: Runs = Path("runs"),
    device: Device = None,
    processes: Processes = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    plugin: Plugins = None,
    threads: Threads = None,
    log: Loggers = None,
) -> None:
    """Train a run for more epochs, as a run of that length from the start.

    It goes on from the last checkpoint before which no schedule would have been another one; where there is
    none, the keys that depend on the length are named. The run stays as it is.
    """
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.runs.folder import RunFolder
    from dino_lab.spec.stages import after
    from dino_lab.training.extend import extend as extended

    folder, parent = RunFolder(run), None
    if as_stage:
        before = folder.spec(registry)
        if folder.status().state != "finished":
            raise UserError(f"{run}: --as-stage goes on from the end of a run, and this one is not finished")
        train = before.train.model_copy(update={"epochs": epochs})
        spec = before.model_copy(update={"train": train, "init": None, "after": after(before)})
        parent = run
    elif to is not None:
        raise UserError("--to goes with --as-stage; a longer run has the spec of the run, with more epochs")
    else:
        spec, step = extended(folder, epochs, runs, registry)
        print(f"{spec.train.epochs} epochs in all; the same as in a run of that length up to step {step}")
    job = Job(run, [], runs, device, checkpoint_every, [], threads, False, log or [], parent=parent)
    _go_on(job, spec, to, processes)


def _go_on(job: Job, spec: Spec, to: Path | None, processes: str | None) -> None:
    """Train a spec, or write it."""
    from dino_lab.cli.console import console
    from dino_lab.cli.interrupt import Interrupt
    from dino_lab.distributed.world import world_of
    from dino_lab.spec.file import dump_yaml, load_text

    if to is not None:
        if to.exists():
            raise UserError(f"--to {to}: is there already")
        to.write_text(dump_yaml(spec))
        print(f"{spec.name}, hash {spec.hash}: written to {to}")
        return
    job.document = load_text(dump_yaml(spec), str(job.file / SPEC))
    world = world_of(os.environ)
    if world.size > 1:
        raise UserError("this is one of several processes; write the spec with --to, and run that")
    with Interrupt(announce=not console().is_terminal) as interrupt:
        code = (
            job.train(world, interrupt)
            if processes is None
            else job.on_several(processes, restarts=3, stop=interrupt)
        )
    raise typer.Exit(code)
