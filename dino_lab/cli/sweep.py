"""The verb that runs a whole ablation."""

from __future__ import annotations

import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import CHECKPOINT_SECONDS, Plugins, Settings


class Executor(StrEnum):
    """Where trials run."""

    ray = "ray"
    inline = "inline"


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file of the sweep.")],
    settings: Settings = None,
    runs: Annotated[Path, typer.Option(metavar="DIR", help="Where run folders are made.")] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop.")] = False,
    executor: Annotated[
        Executor, typer.Option(help="ray: side by side; inline: one after the other in this process.")
    ] = Executor.ray,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Join this Ray cluster. [default: one of this machine alone]"),
    ] = None,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="Time between two checkpoints of a trial.")
    ] = CHECKPOINT_SECONDS,
    yes: Annotated[bool, typer.Option("--yes", help="Also a plan of more than 1,000 trials.")] = False,
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
            )
    except ClusterLost as lost:
        print(lost, file=sys.stderr)
        raise typer.Exit(1) from None
    if dry_run:
        return
    from dino_lab.cli.sweep_text import print_result

    print_result(result, time.monotonic() - began)
    if result.left and interrupt():
        command = shlex.join(["dino-lab", *sys.argv[1:]])
        print(f"\ninterrupted; to continue, run the same command again: {command}")
        raise typer.Exit(130)
    raise typer.Exit(1 if result.left else 0)
