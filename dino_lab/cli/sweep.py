"""The verb that runs a whole ablation."""

from __future__ import annotations

import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from dino_lab.cli.options import (
    CHECKPOINT_SECONDS,
    Check,
    CheckpointEvery,
    Plugins,
    Runs,
    Settings,
    spec_file,
)

if TYPE_CHECKING:
    from dino_lab.sweeps.run import SweepResult


class Executor(StrEnum):
    """Where trials run."""

    ray = "ray"
    inline = "inline"


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", callback=spec_file, help="The YAML file of the sweep.")
    ],
    settings: Settings = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    executor: Annotated[
        Executor, typer.Option(help="ray: side by side; inline: one after the other in this process.")
    ] = Executor.ray,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join this Ray cluster. [default: one of this machine alone]"),
    ] = None,
    checkpoint_every: CheckpointEvery = CHECKPOINT_SECONDS,
    yes: Annotated[bool, typer.Option("--yes", help="Also a plan of more than 1,000 trials.")] = False,
    check: Check = False,
    plugin: Plugins = None,
) -> None:
    """Run every trial of a sweep, or go on where it was stopped, and say what mattered.

    --set with a key of the sweep file changes the sweep, any other the base of all trials.
    """
    from dino_lab.cli.console import console
    from dino_lab.cli.interrupt import Interrupt
    from dino_lab.cli.sweep_view import sweep_view
    from dino_lab.sweeps.ray.cluster import ClusterLost
    from dino_lab.sweeps.run import run_sweep

    began = time.monotonic()
    try:
        with Interrupt(announce=True) as interrupt, sweep_view(console(), redraw=not dry_run) as view:
            result = run_sweep(
                *(file, settings or ()),
                runs=runs,
                executor=executor.value,
                address=address,
                checkpoint_every=checkpoint_every,
                plugins=plugin or (),
                watcher=view,
                stop=interrupt,
                dry_run=dry_run,
                many=yes,
                check=check,
            )
    except ClusterLost as lost:
        print(lost, file=sys.stderr)
        raise typer.Exit(1) from None
    if not dry_run:
        _finish(result, interrupt(), time.monotonic() - began, check)


def _finish(result: SweepResult, interrupted: bool, seconds: float, check: bool) -> NoReturn:
    """Print the table, and end with the exit code."""
    from dino_lab.cli.sweep_text import print_result

    print_result(result, seconds)
    if result.left and interrupted:
        command = shlex.join(["dino-lab", *sys.argv[1:]])
        print(f"\ninterrupted; to continue, run the same command again: {command}")
        raise typer.Exit(130)
    raise typer.Exit(1 if result.left or (check and result.findings.unshown) else 0)
