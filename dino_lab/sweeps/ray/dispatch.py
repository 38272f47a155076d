"""Trials on Ray Tune, which is imported inside functions only.

Ray decides which trial runs where, and starts a trial again whose process died; everything else is done here.
The run folders hold what is done, so that a sweep goes on by being started again; nothing is read back from
Ray's own files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_lab.errors import UserError, first_line
from dino_lab.runs.status import Status
from dino_lab.sweeps.plan.model import Resources, Scheduler
from dino_lab.sweeps.processes.trial import Task, conclude
from dino_lab.sweeps.ray.cluster import Cluster, ClusterLost
from dino_lab.sweeps.ray.schedulers import choose_scheduler
from dino_lab.sweeps.ray.search_algorithm import TaskSource, search_algorithm
from dino_lab.sweeps.watcher import TrialWatcher

_CHECK = 0.5  # seconds between two looks at the processes of Ray


@dataclass(frozen=True)
class Rules:
    """How the trials of a sweep share the machines."""

    resources: Resources
    max_failures: int
    scheduler: Scheduler | None
    metric: str
    mode: str
    epochs: int  # of the longest trial
    chosen: int  # trials that are not known before, at most
    at_once: int  # trials side by side
    spread: bool  # whether the processes of a trial fit on several machines only


def dispatch(
    source: TaskSource,
    rules: Rules,
    watcher: TrialWatcher,
    cluster: Cluster,
    *,
    stop: Callable[[], bool],
    stop_file: Path,
) -> None:
    """Run all tasks on the cluster; returns when each has ended, or has saved after `stop` returned true.

    Tune's own files lie beside `stop_file`, in the sweep's folder, meanwhile. ClusterLost if Ray ends first.
    """
    if cluster.server is None:
        refuse_foreign_storage(stop_file.parent, source.paths)
    own = stop_file.with_name("tune")
    shutil.rmtree(own, ignore_errors=True)
    try:
        callback = _callback(source, watcher, stop, stop_file)
        tuner = _tuner(source, rules, callback, stop, own, cluster.server)
        _run_beside(lambda: _fit(tuner), cluster.check)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _fit(tuner: Any) -> None:
    """Run Tune; ClusterLost for errors of Ray itself."""
    from ray.exceptions import RayError
    from ray.tune import TuneError

    try:
        tuner.fit()
    except (RayError, TuneError) as error:
        raise ClusterLost(
            f"Ray failed ({first_line(error)}); the same command continues the trials from their checkpoints"
        ) from error


def _run_beside(work: Callable[[], Any], check: Callable[[], None]) -> None:
    """Do the work in a thread, until `check` raises: without its processes Ray may wait for ever."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, daemon=True, name="tune").start()
    while not done.done():
        with contextlib.suppress(NotYet):
            done.exception(_CHECK)
        check()
    done.result()


def _tuner(
    source: TaskSource,
    rules: Rules,
    callback: Any,
    stop: Callable[[], bool],
    storage: Path,
    server: str | None,
) -> Any:
    from ray import tune

    searched = rules.chosen > 0
    known = source.known
    scheduler = rules.scheduler
    metric, mode = rules.metric, rules.mode
    if scheduler is not None and scheduler.metric is not None:
        metric, mode = scheduler.metric, scheduler.mode
    grid = {} if searched else {"stack": tune.grid_search([callback.config(stack) for stack in known])}
    return tune.Tuner(
        tune.with_resources(_trainable(metric, server, rules.spread), _share(rules)),
        param_space=grid,
        tune_config=tune.TuneConfig(
            search_alg=search_algorithm(source, callback.config, stop) if searched else None,
            num_samples=len(known) + rules.chosen if searched else 1,
            max_concurrent_trials=rules.at_once if searched and server is not None else None,
            scheduler=choose_scheduler(scheduler, metric, mode, rules.epochs),
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=rules.max_failures),
            callbacks=[callback],
        ),
    )


def _share(rules: Rules) -> Any:
    """What Tune reserves for a trial: on one machine, or a part for each of its processes."""
    from ray import tune

    resources = rules.resources
    if not rules.spread:
        return {"cpu": resources.cores, "gpu": resources.gpu}
    part = {"CPU": resources.cpu} | ({"GPU": 1} if resources.gpu else {})
    return tune.PlacementGroupFactory([part] * resources.ranks)


class _Progress:
    """Tasks by hash, and what is known of them; each ending reaches the watcher once, and then the source."""

    def __init__(self, source: TaskSource, watcher: TrialWatcher) -> None:
        self._source, self._watcher = source, watcher
        self._tasks: dict[str, Task] = {}
        self._ended: set[str] = set()
        self.steps: dict[str, int] = {}  # of the last row

    def add(self, stack: list[Task]) -> None:
        """Tasks that are going to start."""
        self._tasks.update({task.hash: task for task in stack})

    def receive(self, message: Mapping[str, Any]) -> None:
        """A worker has reported a row, an ending, or that another process trains the run."""
        task = self._tasks.get(message.get("of", ""))
        if task is None:
            return
        if "ending" in message:
            self.end(task, Status(**message["ending"]))
        elif "waiting" in message:
            self._watcher.waiting(task)
        elif "row" in message:
            self.steps[task.hash] = int(message["row"]["step"])
            self._watcher.row(task, message["row"])

    def open(self, trial: Any) -> list[Task]:
        """The tasks of one of Tune's trials that have not ended."""
        return [self._tasks[name] for name in trial.config["stack"]["hashes"] if name not in self._ended]

    def end(self, task: Task, ending: Status) -> None:
        """A task has ended; a second ending, after its stack's process died and began again, is ignored."""
        if task.hash not in self._ended:
            self._ended.add(task.hash)
            self._watcher.ended(task, ending)
            self._source.over(task)


def _callback(source: TaskSource, watcher: TrialWatcher, stop: Callable[[], bool], stop_file: Path) -> Any:
    """What Tune calls while it runs."""
    from ray import tune

    progress = _Progress(source, watcher)

    class Relay(tune.Callback):  # type: ignore[misc]
        """Calls the watcher's hooks, and creates the stop file when the sweep should stop."""

        def config(self, stack: list[Task]) -> dict[str, list[str]]:
            """What Tune is given for a stack."""
            progress.add(stack)
            return {"hashes": [task.hash for task in stack], "texts": [task.text() for task in stack]}

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune pickles it into a file that nobody reads

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop() and not stop_file.exists():
                stop_file.touch()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            progress.receive(result)

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for task in progress.open(trial):
                # The last that a scheduler ended goes with its worker, and has no time to write its ending.
                ending = Status("stopped", progress.steps.get(task.hash, 0))
                conclude(task, ending)
                progress.end(task, ending)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for task in progress.open(trial):
                watcher.died(task)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ending = Status("failed", reason=f"its process died {trial.num_failures} times")
            for task in progress.open(trial):
                conclude(task, ending)
                progress.end(task, ending)

    return Relay()


def _trainable(metric: str, server: str | None, spread: bool) -> Callable[[dict[str, Any]], None]:
    """A function of its own for each sweep: Tune writes the resources on it."""

    def trial(config: dict[str, Any]) -> None:
        from dino_lab.sweeps.ray.worker import run

        run(config["stack"]["texts"], metric, server, spread)

    return trial


def refuse_foreign_storage(folder: Path, paths: Iterable[str]) -> None:
    """UserError unless every machine sees the run folders, and what trials read, under the same path."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = folder / f"seen-{uuid.uuid4().hex}"
    mark.touch()
    wanted = {str(mark.resolve()): folder.resolve()} | {path: path for path in paths}
    look = ray.remote(num_cpus=0)(os.path.exists)
    missing = []
    for node in ray.nodes():
        if node["Alive"]:
            there = look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            )
            seen = ray.get([there.remote(path) for path in wanted])
            for name, is_seen in zip(wanted.values(), seen, strict=True):
                if not is_seen:
                    missing.append(f"{node['NodeManagerHostname']} does not see {name}")
    mark.unlink()
    if missing:
        raise UserError(f"--address: {missing[0]}; use shared storage")
