"""One session of a sweep: planned, forecast, trained, and summed up in tables."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch

from dino_lab.errors import SpecError
from dino_lab.registry import Registry, registry
from dino_lab.reports.study.files import write_study
from dino_lab.reports.study.findings import Findings
from dino_lab.runs import lock
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status
from dino_lab.sweeps.plan.forecast import Forecast, forecast
from dino_lab.sweeps.plan.optuna_search import OptunaSearch, check_optuna
from dino_lab.sweeps.plan.plan import Plan, PlannedTrial
from dino_lab.sweeps.processes.trial import Task, run_trials, spec_of
from dino_lab.sweeps.ray.capacity import Machine, at_once, is_spread, shortage, this_machine
from dino_lab.sweeps.ray.cluster import Cluster
from dino_lab.sweeps.ray.dispatch import Rules, dispatch
from dino_lab.sweeps.trial_queue import STOP_FILE, TrialQueue
from dino_lab.sweeps.watcher import SweepWatcher
from dino_lab.training.data_cache import Shelf
from dino_lab.training.stacked.planning import form, reason_to_be_alone


def stacks(
    trials: Sequence[PlannedTrial], most: int, registry: Registry
) -> tuple[list[list[PlannedTrial]], dict[str, int]]:
    """Trials with equal shapes in stacks of at most `most`; and how many train alone, by reason.

    The order of the plan is kept, in which trials with equal seeds, and so equal crops, follow each other.
    """
    if most == 1:
        return [[trial] for trial in trials], {}
    alike: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        alike.setdefault(form(trial.spec, registry), []).append(trial)
    found: list[list[PlannedTrial]] = []
    alone: dict[str, int] = {}
    for group in alike.values():
        single = "no other has networks and crops of the same shape"
        reason = single if len(group) == 1 else reason_to_be_alone(group[0].spec, registry)
        size = most if reason is None else 1
        if reason is not None:
            alone[reason] = alone.get(reason, 0) + len(group)
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found, alone


@dataclass(frozen=True)
class Overview:
    """What a session is going to do."""

    plan: Plan
    runs: Path
    stacks: list[list[PlannedTrial]]  # left to train; most hold one trial
    alone: dict[str, int]  # trials outside any stack, by reason
    chosen: int  # trials that a search chooses later
    at_once: int  # stacks side by side
    spread: bool  # whether the processes of a trial fit on several machines only
    expected: Forecast | None  # None where nothing is left to do
    folder: Path

    @property
    def trials(self) -> int:
        """How many trials are left."""
        return sum(map(len, self.stacks)) + self.chosen


@dataclass(frozen=True)
class Summary:
    """What the runs of a sweep say, and how much of it is left."""

    findings: Findings
    total: int
    left: int
    refused: tuple[str, ...]  # why points of a search are no spec


class Session:
    """One session of a planned sweep; `cluster` is None where trials train in this process."""

    def __init__(
        self,
        plan: Plan,
        runs: Path,
        cluster: Cluster | None,
        *,
        side_by_side: bool,
        checkpoint_every: float,
        plugins: Sequence[Path],
    ) -> None:
        self.plan, self.runs, self._cluster = plan, runs, cluster
        self.folder = plan.folder(runs)
        self._side_by_side, self._checkpoint_every, self._plugins = side_by_side, checkpoint_every, plugins
        self._shelf = Shelf()
        self._machine = this_machine()
        if plan.sweep.search is not None:
            check_optuna()
        if (lacking := shortage(self._machines, plan.sweep.resources)) is not None:
            raise SpecError(plan.line(("resources", lacking[0]), lacking[1]))
        self._search = OptunaSearch(plan, registry, runs) if plan.sweep.search is not None else None
        self._stacks, self._alone = stacks(remaining(plan, runs), plan.sweep.stack, registry)

    @cached_property
    def overview(self) -> Overview:
        """The plan with a forecast; trials' processes and the cluster start in the background."""
        chosen = self._search.left if self._search is not None else 0
        at_once, expected = self._at_once(), None
        if self._stacks or chosen:
            # Before this process is copied: the copies share what is on the shelf.
            self._shelf.data((self._stacks[0] if self._stacks else self.plan.trials)[0].spec, registry)
            if self._cluster is not None:
                self._cluster.prepare(self._plugins, None if self._device == "cuda" else self._shelf)
            on = torch.device(self._device if self._machine.gpus else "cpu")
            data = partial(self._shelf.data, registry=registry)
            expected = forecast(self.plan, self._stacks, chosen, at_once, registry, on, data)
        left = (self._stacks, self._alone, chosen, at_once, self._is_spread)
        return Overview(self.plan, self.runs, *left, expected, self.folder)

    def train(self, watcher: SweepWatcher, stop: Callable[[], bool]) -> None:
        """Train what is left, until `stop` asks for the end."""
        queue = TrialQueue(
            *(self.plan, self._stacks, self._search, self.runs),
            *(self._device, self._checkpoint_every, self._plugins),
        )
        gc.enable()  # the command line turns it off while modules are imported
        with _without_stop_file(self.folder):
            if self._cluster is None:
                train_inline(queue, watcher, stop, self._shelf)
            elif self.overview.trials:
                self._cluster.wait()
                self._train_on_ray(queue, watcher, stop, self._cluster)

    def write(self) -> Summary:
        """Tables and pictures of everything that has run, in the sweep's folder."""
        search = self._search
        study = search.study if search is not None else self.plan.study
        found = write_study(study, self.folder)
        samples = self.plan.sweep.search.samples if self.plan.sweep.search else 0
        left = len(remaining(self.plan, self.runs)) + (search.left if search is not None else 0)
        refused = tuple(search.refused) if search is not None else ()
        return Summary(found, len(self.plan.trials) + samples, left, refused)

    @property
    def _machines(self) -> list[Machine]:
        return (self._cluster.machines if self._cluster is not None else None) or [self._machine]

    @property
    def _is_spread(self) -> bool:
        return is_spread(self._machines, self.plan.sweep.resources)

    @property
    def _device(self) -> str:
        return "cuda" if self.plan.sweep.resources.gpu else "cpu"

    def _at_once(self) -> int:
        if not self._side_by_side:
            return 1
        return at_once(self._machines, self.plan.sweep.resources)

    def _train_on_ray(
        self, queue: TrialQueue, watcher: SweepWatcher, stop: Callable[[], bool], cluster: Cluster
    ) -> None:
        sweep = self.plan.sweep
        rules = Rules(
            resources=sweep.resources,
            max_failures=sweep.max_failures,
            scheduler=sweep.scheduler,
            metric=sweep.metric,
            mode=sweep.mode,
            epochs=max(trial.spec.train.epochs for trial in self.plan.trials),
            chosen=sweep.search.samples if sweep.search else 0,
            at_once=self._at_once(),
            spread=self._is_spread,
        )
        dispatch(queue, rules, watcher, cluster, stop=stop, stop_file=self.folder / STOP_FILE)


def remaining(plan: Plan, runs: Path) -> list[PlannedTrial]:
    """Trials that are not over, or lack an evaluator of their spec.

    A collapse is a result; so is a scheduler's end, in a plan that has one.
    """
    over = {"finished", "collapsed"} | ({"stopped"} if plan.sweep.scheduler else set())
    folders = [(trial, RunFolder(trial.folder(runs))) for trial in plan.trials]
    return [
        trial
        for trial, folder in folders
        if folder.status().state not in over or folder.unseen_evaluators(trial.spec)
    ]


def train_inline(queue: TrialQueue, watcher: SweepWatcher, stop: Callable[[], bool], shelf: Shelf) -> None:
    """Train one stack after the other in this process."""

    def ended(task: Task, ending: Status) -> None:
        watcher.ended(task, ending)
        queue.over(task)

    for stack in queue:
        if stop():
            break
        specs = [spec_of(task) for task in stack]
        shared = shelf.data(specs[0], registry)
        run_trials(stack, specs, watcher.row, ended, waiting=watcher.waiting, asked=stop, shared=shared)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a sweep, made if need be; a Busy if another process holds it.

    What was made for the lock alone is removed.
    """
    with lock.locked(folder, busy="another process is running this sweep; wait until it ends"):
        try:
            yield
        finally:
            (folder / lock.FILE).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder with content stays
                for empty in (folder, *folder.parents[:3]):
                    empty.rmdir()


@contextlib.contextmanager
def _without_stop_file(folder: Path) -> Iterator[None]:
    """Remove the stop file of an earlier session, and that of this one."""
    (folder / STOP_FILE).unlink(missing_ok=True)
    yield
    (folder / STOP_FILE).unlink(missing_ok=True)
