"""Trials on Ray Tune, which is imported inside functions only.

Ray decides which trial runs where, and starts it again where a process died; everything else is ours. The
run folders say what is done, so that a sweep goes on by being started again, and nothing is ever read back
from Ray's own files.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dino_lab.errors import UserError
from dino_lab.reports.ending import Ending, read_ending, write_ending
from dino_lab.sweeps.model import Resources, Scheduler
from dino_lab.sweeps.trial import Task

_OVER = ("stopped", "finished", "collapsed")


class Watcher(Protocol):
    """Whoever wants to know how the trials go on."""

    def row(self, task: Task, numbers: Mapping[str, Any]) -> None:
        """A trial has started, or written a row."""
        ...

    def ended(self, task: Task, ending: Ending) -> None:
        """A trial has ended."""
        ...

    def died(self, task: Task) -> None:
        """The process of a trial died; the trial goes on in another."""
        ...


@dataclass(frozen=True)
class Rules:
    """How the trials of a sweep share the machines."""

    resources: Resources
    max_failures: int
    scheduler: Scheduler | None
    metric: str
    mode: str
    epochs: int  # of the longest trial


def dispatch(
    tasks: Sequence[Task],
    rules: Rules,
    watcher: Watcher,
    *,
    stop: Callable[[], bool],
    folder: Path,
    server: str | None,
) -> None:
    """Run all tasks on the cluster; returns when each has ended, or has saved after `stop` said so.

    `folder` is that of the sweep; what Tune keeps of its own lies there meanwhile. `server` is where that of
    this machine listens, if it has one; on a cluster that was joined each worker starts its own.
    """
    if server is None:
        _refuse_what_cluster_lacks(rules.resources)
        _refuse_foreign_storage(folder)
    own = folder / "tune"
    shutil.rmtree(own, ignore_errors=True)
    try:
        weak: dict[str, int] = {}
        _tuner(tasks, rules, _relay(tasks, watcher, stop, weak), own, server).fit()
        for task in tasks:
            # The last that a scheduler ended goes with its worker, and has no time to say so itself.
            if task.hash in weak and read_ending(task.folder).status not in _OVER:
                write_ending(task.folder, Ending("stopped", weak[task.hash]))
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _tuner(tasks: Sequence[Task], rules: Rules, relay: Any, storage: Path, server: str | None) -> Any:
    from ray import tune

    share = {"cpu": rules.resources.cpu, "gpu": rules.resources.gpu}
    texts = [{"hash": task.hash, "text": task.text()} for task in tasks]
    scheduler = rules.scheduler
    metric, mode = rules.metric, rules.mode
    if scheduler is not None and scheduler.metric is not None:
        metric, mode = scheduler.metric, scheduler.mode
    return tune.Tuner(
        tune.with_resources(_trainable(metric, server), share),
        param_space={"task": tune.grid_search(texts)},
        tune_config=tune.TuneConfig(
            scheduler=_scheduler(scheduler, metric, mode, rules.epochs),
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.trial_id),
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=str(storage.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=rules.max_failures),
            callbacks=[relay],
        ),
    )


def _relay(tasks: Sequence[Task], watcher: Watcher, stop: Callable[[], bool], weak: dict[str, int]) -> Any:
    """What Tune tells; `weak` becomes the steps of those that the scheduler ended."""
    from ray import tune

    by_hash = {task.hash: task for task in tasks}
    ended: set[str] = set()
    steps: dict[str, int] = {}
    stop_file = Path(tasks[0].stop_file)

    def task_of(trial: Any) -> Task:
        return by_hash[trial.config["task"]["hash"]]

    class Relay(tune.Callback):  # type: ignore[misc]
        """Tells the watcher how it goes, and the trials when to stop."""

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune pickles it into a file that nobody reads

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop() and not stop_file.exists():
                stop_file.touch()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            task = task_of(trial)
            if "ending" in result:
                ended.add(task.hash)
                watcher.ended(task, Ending(**result["ending"]))
            elif "row" in result:
                steps[task.hash] = int(result["row"]["step"])
                watcher.row(task, result["row"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            task = task_of(trial)
            if task.hash not in ended:
                weak[task.hash] = steps.get(task.hash, 0)
                watcher.ended(task, Ending("stopped", weak[task.hash]))

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            watcher.died(task_of(trial))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ending = Ending("failed", reason=f"its process died {trial.num_failures} times")
            write_ending(task_of(trial).folder, ending)
            watcher.ended(task_of(trial), ending)

    return Relay()


def _trainable(metric: str, server: str | None) -> Callable[[dict[str, Any]], None]:
    """A function of its own for each sweep: Tune writes the resources on it."""

    def trial(config: dict[str, Any]) -> None:
        from dino_lab.sweeps.worker import run

        run(config["task"]["text"], metric, server)

    return trial


def _scheduler(scheduler: Scheduler | None, metric: str, mode: str, epochs: int) -> Any:
    from ray.tune import schedulers

    if scheduler is None:
        return None
    common = {"time_attr": "epoch", "metric": metric, "mode": mode, "grace_period": scheduler.grace_epochs}
    if scheduler.name == "median":
        return schedulers.MedianStoppingRule(**common, min_samples_required=3)
    most = max(epochs, scheduler.grace_epochs) + 1  # or it would end the best ones with their last row
    return schedulers.ASHAScheduler(**common, max_t=most, reduction_factor=scheduler.reduction)


def _refuse_what_cluster_lacks(resources: Resources) -> None:
    import ray

    there = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, asked in (("CPU", resources.cpu), ("GPU", resources.gpu)):
        if asked and all(node.get(name, 0) < asked for node in nodes):
            has = f"{there.get(name, 0):g} {name} on {len(nodes)} machine(s)"
            raise UserError(f"a trial asks for {asked:g} {name} on one machine; the cluster has {has}")


def _refuse_foreign_storage(folder: Path) -> None:
    """Every machine of the cluster must see the run folders under the same path."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = folder / f"seen-{uuid.uuid4().hex}"
    mark.touch()
    path = str(mark.resolve())
    look = ray.remote(num_cpus=0)(os.path.exists)
    try:
        for node in ray.nodes():
            if node["Alive"]:
                there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                if not ray.get(look.options(scheduling_strategy=there).remote(path)):
                    name = node["NodeManagerHostname"]
                    raise UserError(f"--address: {name} does not see {folder.resolve()}; use shared storage")
    finally:
        mark.unlink(missing_ok=True)
