"""The verb that runs a whole ablation."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import CHECKPOINT_SECONDS, Plugins, Settings
from dino_lab.errors import SpecError, UserError
from dino_lab.plugin_file import load_plugins

if TYPE_CHECKING:
    from rich.console import Console

    from dino_lab.cli.sweep_view import SweepView
    from dino_lab.protocols import SharedData
    from dino_lab.reports.tables import Line
    from dino_lab.sweeps.cluster import Cluster
    from dino_lab.sweeps.plan import Plan, Trial


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

    out = console()
    began = time.monotonic()
    on_ray = executor is Executor.ray and not dry_run
    # Ray takes seconds to start: meanwhile torch is imported, the plan checked, and a few steps measured.
    with Interrupt(announce=True) as interrupt, _cluster(address) if on_ray else nullcontext() as there:
        load_plugins(plugin)
        from dino_lab.registry import registry
        from dino_lab.reports.page import write_report
        from dino_lab.sweeps.machine import this_machine
        from dino_lab.sweeps.plan import load_plan
        from dino_lab.sweeps.run import STOP_FILE, remaining, run_inline, run_on_ray, tasks
        from dino_lab.training.shelf import Shelf

        plan = load_plan(file, settings or (), registry, runs=runs, many=yes)
        if executor is Executor.inline and plan.sweep.scheduler is not None:
            raise UserError("--executor inline runs each trial to its end; leave it out, or the scheduler")
        machine = this_machine()
        if address is None and (lack := machine.lacks(plan.sweep.resources)) is not None:
            raise SpecError(plan.line(("resources", lack[0]), lack[1]))
        todo = remaining(plan, runs)
        folder = plan.folder(runs)
        at_once = 1 if executor is Executor.inline else machine.at_once(plan.sweep.resources)
        device = "cuda" if plan.sweep.resources.gpu else "cpu"
        shelf = Shelf()
        shared = shelf.data(todo[0].spec, registry) if todo else None
        if there is not None and todo:
            there.prepare(plugin or (), None if device == "cuda" else shelf)
        seconds = _measured(plan, todo, device if machine.gpus else "cpu", shared) if todo else 0.0
        _print_plan(plan, todo, at_once, seconds, folder, out)
        if dry_run:
            return
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STOP_FILE).unlink(missing_ok=True)
        work = tasks(plan, todo, runs, device=device, checkpoint_every=checkpoint_every, plugins=plugin or ())
        with _view(plan, len(todo), out) as view:
            if there is None:
                run_inline(work, view, interrupt, shelf)
            elif todo:
                there.wait()
                run_on_ray(plan, work, view, interrupt, runs=runs, server=there.server)
        (folder / STOP_FILE).unlink(missing_ok=True)
        found = write_report(plan.study, folder)
    left = remaining(plan, runs)
    _print_result(plan, found, left, folder, time.monotonic() - began)
    if left and interrupt():
        command = shlex.join(["dino-lab", *sys.argv[1:]])
        print(f"\ninterrupted; to continue, run the same command again: {command}")
        raise typer.Exit(130)
    raise typer.Exit(1 if left else 0)


def _cluster(address: str | None) -> AbstractContextManager[Cluster]:
    from dino_lab.sweeps.cluster import cluster

    return cluster(address)


def _measured(plan: Plan, todo: list[Trial], device: str, shared: SharedData | None) -> float:
    """Seconds of a trial of average length; a UserError if its rows will not have the metric."""
    import torch

    from dino_lab.errors import Misfit
    from dino_lab.registry import registry, suggest
    from dino_lab.sweeps.measure import measure

    first = todo[0]
    try:
        found = measure(first.spec, registry, torch.device(device), plan.sweep.resources.cpu, shared)
    except Misfit as misfit:
        raise UserError(f"{first.label}: {misfit}") from misfit
    scheduler = plan.sweep.scheduler
    for loc, metric in (
        (("metric",), plan.sweep.metric),
        (("scheduler", "metric"), scheduler.metric if scheduler else None),
    ):
        if metric is not None and metric not in found.numbers:
            there = ", ".join(name for name in found.numbers if ("." in name) == ("." in metric))
            hint = suggest(metric, list(found.numbers))
            raise SpecError(plan.line(loc, f"no evaluator reports {metric!r}{hint} (there are: {there})"))
    epochs = [trial.spec.train.epochs for trial in todo]
    return found.seconds * sum(epochs) / len(epochs) / first.spec.train.epochs


def _print_plan(
    plan: Plan, todo: list[Trial], at_once: int, seconds: float, folder: Path, out: Console
) -> None:
    from dino_lab.cli.console import print_table
    from dino_lab.cli.words import duration

    study, resources = plan.study, plan.sweep.resources
    waiting = {trial.spec.hash for trial in todo}
    rows = []
    for arm in study.arms:
        here = sum(path.name in waiting for path in arm.folders.values())
        kept = len(arm.folders) - here
        rows.append(
            [
                arm.label,
                ", ".join(map(str, arm.folders)),
                "baseline" if arm.label == study.baseline else "",
                f"{kept} done" if kept else "",
            ]
        )
    print_table(["arm", "seeds", "", ""], rows, headed=True)
    joined = f", {plan.joined} more are the same spec as another" if plan.joined else ""
    done = len(plan.trials) - len(todo)
    before = f", {done} of them done before" if done else ""
    share = f"{resources.cpu} core(s)" + (f" and {resources.gpu:g} GPU" if resources.gpu else "")
    print(f"{len(plan.trials)} trials{before}{joined}; {at_once} at once, {share} each")
    if todo:
        rounds = -(-len(todo) // at_once)
        print(
            f"about {duration(seconds)} a trial and {duration(seconds * rounds)} in all, by a few steps "
            f"of {todo[0].label}"
        )
    print(f"metric: {study.metric}; tables and pictures will lie in {folder}", flush=True)


def _print_result(plan: Plan, found: list[Line], left: list[Trial], folder: Path, seconds: float) -> None:
    from dino_lab.cli.console import print_table
    from dino_lab.cli.words import duration
    from dino_lab.reports.tables import HEADERS, notes

    print()
    print_table(HEADERS, [line.cells() for line in found], headed=True)
    for note in notes(plan.study, found):
        print(note)
    over = len(plan.trials) - len(left)
    print(f"\n{over} of {len(plan.trials)} trials, {duration(seconds)}; everything lies in {folder}")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}")


def _view(plan: Plan, trials: int, out: Console) -> AbstractContextManager[SweepView]:
    from dino_lab.cli.sweep_view import LiveSweepView, SweepView

    if out.is_terminal:
        return LiveSweepView(plan.study.metric, trials, out)
    return nullcontext(SweepView(plan.study.metric, trials))
