"""A plan, carried out: what is done already is left alone, the rest goes to an executor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_lab.registry import registry
from dino_lab.reports.ending import read_ending
from dino_lab.spec.file import dump_yaml
from dino_lab.sweeps.dispatch import Rules, Watcher, dispatch
from dino_lab.sweeps.plan import Plan, Trial
from dino_lab.sweeps.trial import Task, run_trial, spec_of
from dino_lab.training.shelf import Shelf

STOP_FILE = "stop"


def remaining(plan: Plan, runs: Path) -> list[Trial]:
    """Trials that are not over. A collapse is a result; so is a scheduler's end, for a plan that has one."""
    over = {"finished", "collapsed"} | ({"stopped"} if plan.sweep.scheduler else set())
    return [trial for trial in plan.trials if read_ending(trial.folder(runs)).status not in over]


def tasks(
    plan: Plan,
    trials: Sequence[Trial],
    runs: Path,
    *,
    device: str,
    checkpoint_every: float,
    plugins: Sequence[Path],
) -> list[Task]:
    """The trials as plain data, every path absolute."""
    return [
        Task(
            label=trial.label,
            name=trial.spec.name,
            hash=trial.spec.hash,
            spec=dump_yaml(trial.spec),
            runs=str(runs.resolve()),
            place=str(Path.cwd()),
            device=device,
            threads=plan.sweep.resources.cpu,
            checkpoint_every=checkpoint_every,
            stop_file=str(plan.folder(runs).resolve() / STOP_FILE),
            plugins=tuple(str(file.resolve()) for file in plugins),
        )
        for trial in trials
    ]


def run_inline(todo: Sequence[Task], watcher: Watcher, stop: Callable[[], bool], shelf: Shelf) -> None:
    """One after the other, in this process."""
    for task in todo:
        if stop():
            break
        report = functools.partial(watcher.row, task)
        spec = spec_of(task)
        shared = shelf.data(spec, registry)
        watcher.ended(task, run_trial(task, spec, report, stop, shared=shared))


def run_on_ray(
    plan: Plan,
    todo: Sequence[Task],
    watcher: Watcher,
    stop: Callable[[], bool],
    *,
    runs: Path,
    server: str | None,
) -> None:
    """As many at once as there is room for; by the server that listens at `server`, or each worker's own."""
    sweep = plan.sweep
    rules = Rules(
        resources=sweep.resources,
        max_failures=sweep.max_failures,
        scheduler=sweep.scheduler,
        metric=sweep.metric,
        mode=sweep.mode,
        epochs=max(trial.spec.train.epochs for trial in plan.trials),
    )
    dispatch(
        todo,
        rules,
        watcher,
        stop=stop,
        folder=plan.folder(runs),
        server=server,
    )
