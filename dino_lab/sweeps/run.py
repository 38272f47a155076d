"""A plan, carried out: what is done already is left alone, the rest goes to an executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dino_lab.registry import registry
from dino_lab.runs.status import Ending, read_ending
from dino_lab.spec.file import dump_yaml
from dino_lab.sweeps.plan.plan import Plan, Trial
from dino_lab.sweeps.plan.search import Search
from dino_lab.sweeps.processes.trial import Task, run_trials, spec_of
from dino_lab.sweeps.ray.dispatch import STOP_FILE, Rules, Watcher, dispatch
from dino_lab.training.data_cache import Shelf


def remaining(plan: Plan, runs: Path) -> list[Trial]:
    """Trials that are not over. A collapse is a result; so is a scheduler's end, for a plan that has one."""
    over = {"finished", "collapsed"} | ({"stopped"} if plan.sweep.scheduler else set())
    return [trial for trial in plan.trials if read_ending(trial.folder(runs)).status not in over]


class Queue:
    """What is left to do, as plain data with absolute paths: packs that are known, then what is chosen."""

    def __init__(
        self,
        plan: Plan,
        packs: Sequence[Sequence[Trial]],
        search: Search | None,
        runs: Path,
        *,
        device: str,
        checkpoint_every: float,
        plugins: Sequence[Path],
    ) -> None:
        self.plan, self.search, self.runs = plan, search, runs
        self._device, self._checkpoint_every, self._plugins = device, checkpoint_every, plugins
        self.known = [[self._task(trial) for trial in pack] for pack in packs]

    def _task(self, trial: Trial) -> Task:
        return Task(
            label=trial.label,
            name=trial.spec.name,
            hash=trial.spec.hash,
            spec=dump_yaml(trial.spec),
            runs=str(self.runs.resolve()),
            place=str(Path.cwd()),
            device=self._device,
            threads=self.plan.sweep.resources.cpu,
            checkpoint_every=self._checkpoint_every,
            stop_file=str(self.plan.folder(self.runs).resolve() / STOP_FILE),
            plugins=tuple(str(file.resolve()) for file in self._plugins),
        )

    def chosen(self) -> Task | None:
        """The next trial that was not known; None once there are no more."""
        trial = self.search.next() if self.search is not None else None
        return self._task(trial) if trial is not None else None

    @property
    def paths(self) -> list[str]:
        """Files and folders that trials need: where they start, plugins, and what specs name that is here."""
        words = [word for trial in self.plan.trials for word in _words(trial.spec.dump())]
        named = [Path(word) for word in words if os.sep in word and os.path.exists(word)]
        return list(dict.fromkeys(str(path.absolute()) for path in (Path(), *self._plugins, *named)))

    def over(self, task: Task) -> None:
        """A trial has ended, and its folder says how."""
        if self.search is not None:
            self.search.over(task.hash)

    def __iter__(self) -> Iterator[list[Task]]:
        yield from self.known
        while (task := self.chosen()) is not None:
            yield [task]


def _words(value: Any) -> Iterator[str]:
    """Every text of nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _words(item)


def run_inline(queue: Queue, watcher: Watcher, stop: Callable[[], bool], shelf: Shelf) -> None:
    """One after the other, in this process."""

    def ended(task: Task, ending: Ending) -> None:
        watcher.ended(task, ending)
        queue.over(task)

    for pack in queue:
        if stop():
            break
        specs = [spec_of(task) for task in pack]
        shared = shelf.data(specs[0], registry)
        run_trials(pack, specs, watcher.row, ended, asked=stop, shared=shared)


def run_on_ray(
    queue: Queue, watcher: Watcher, stop: Callable[[], bool], *, at_once: int, server: str | None
) -> None:
    """As many at once as there is room for; by the server that listens at `server`, or each worker's own."""
    sweep, plan = queue.plan.sweep, queue.plan
    rules = Rules(
        resources=sweep.resources,
        max_failures=sweep.max_failures,
        scheduler=sweep.scheduler,
        metric=sweep.metric,
        mode=sweep.mode,
        epochs=max(trial.spec.train.epochs for trial in plan.trials),
        chosen=sweep.search.samples if sweep.search else 0,
        at_once=at_once,
    )
    dispatch(queue, rules, watcher, stop=stop, folder=plan.folder(queue.runs), server=server)
