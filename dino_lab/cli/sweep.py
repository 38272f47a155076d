"""The verb that runs a whole ablation."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import CHECKPOINT_SECONDS, Plugins, Settings, spec_file
from dino_lab.errors import SpecError, UserError
from dino_lab.registry.plugin_files import load_plugins

if TYPE_CHECKING:
    from rich.console import Console

    from dino_lab.cli.sweep_view import SweepView
    from dino_lab.sweeps.plan.plan import Plan
    from dino_lab.sweeps.ray.cluster import Cluster


class Executor(StrEnum):
    """Where trials run."""

    ray = "ray"
    inline = "inline"


def sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", callback=spec_file, help="The YAML file of the sweep.")
    ],
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
    from dino_lab.cli.sweep_text import print_plan, print_result

    out = console()
    began = time.monotonic()
    on_ray = executor is Executor.ray and not dry_run
    # Ray takes seconds to start: meanwhile torch is imported, the plan checked, and a few steps measured.
    with Interrupt(announce=True) as interrupt, _cluster(address) if on_ray else nullcontext() as there:
        load_plugins(plugin)
        import torch

        from dino_lab.registry import registry
        from dino_lab.reports.study.write import write_report
        from dino_lab.sweeps.plan.forecast import forecast
        from dino_lab.sweeps.plan.plan import load_plan
        from dino_lab.sweeps.plan.search import Search, check_optuna
        from dino_lab.sweeps.plan.stacks import packs
        from dino_lab.sweeps.ray.dispatch import STOP_FILE
        from dino_lab.sweeps.ray.machine import lack, this_machine
        from dino_lab.sweeps.run import Queue, remaining, run_inline, run_on_ray
        from dino_lab.training.data_cache import Shelf

        plan = load_plan(file, settings or (), registry, runs=runs, many=yes)
        if executor is Executor.inline and plan.sweep.scheduler is not None:
            raise UserError("--executor inline runs each trial to its end; leave it out, or the scheduler")
        if plan.sweep.search is not None:
            check_optuna()
        machine = this_machine()
        machines = there.machines if there is not None and there.machines else [machine]
        if (lacks := lack(machines, plan.sweep.resources)) is not None:
            raise SpecError(plan.line(("resources", lacks[0]), lacks[1]))
        search = Search(plan, registry, runs) if plan.sweep.search is not None else None
        todo, alone = packs(remaining(plan, runs), plan.sweep.pack, registry)
        folder = plan.folder(runs)
        at_once = 1
        if executor is not Executor.inline:
            at_once = sum(one.at_once(plan.sweep.resources) for one in machines)
        device = "cuda" if plan.sweep.resources.gpu else "cpu"
        shelf = Shelf()
        chosen = search.left if search is not None else 0
        asked = sum(map(len, todo)) + chosen
        if asked:  # before there are copies of this process, which share what is on the shelf
            shelf.data((todo[0] if todo else plan.trials)[0].spec, registry)
        if there is not None and asked:
            there.prepare(plugin or (), None if device == "cuda" else shelf)
        on = torch.device(device if machine.gpus else "cpu")
        data = partial(shelf.data, registry=registry)
        expected = forecast(plan, todo, chosen, at_once, registry, on, data) if asked else None
        print_plan(plan, todo, alone, chosen, at_once, expected, folder)
        if dry_run:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP_FILE).unlink(missing_ok=True)
        queue = Queue(
            *(plan, todo, search, runs),
            device=device,
            checkpoint_every=checkpoint_every,
            plugins=plugin or (),
        )
        with _view(plan, asked, out) as view:
            if there is None:
                run_inline(queue, view, interrupt, shelf)
            elif asked:
                there.wait()
                run_on_ray(queue, view, interrupt, at_once=at_once, server=there.server)
        (folder / STOP_FILE).unlink(missing_ok=True)
        study = search.study if search is not None else plan.study
        found = write_report(study, folder)
    left = len(remaining(plan, runs)) + (search.left if search is not None else 0)
    total = len(plan.trials) + (plan.sweep.search.samples if plan.sweep.search else 0)
    print_result(study, found, left, total, folder, time.monotonic() - began)
    if search is not None and search.refused:
        print(f"{len(search.refused)} points were no spec; the first: {search.refused[0]}")
    if left and interrupt():
        command = shlex.join(["dino-lab", *sys.argv[1:]])
        print(f"\ninterrupted; to continue, run the same command again: {command}")
        raise typer.Exit(130)
    raise typer.Exit(1 if left else 0)


def _cluster(address: str | None) -> AbstractContextManager[Cluster]:
    from dino_lab.sweeps.ray.cluster import cluster

    return cluster(address)


def _view(plan: Plan, trials: int, out: Console) -> AbstractContextManager[SweepView]:
    from dino_lab.cli.sweep_view import LiveSweepView, SweepView

    if out.is_terminal:
        return LiveSweepView(plan.study.metric, trials, out)
    return nullcontext(SweepView(plan.study.metric, trials))
