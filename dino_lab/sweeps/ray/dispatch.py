"""Trials on Ray Tune, which is imported inside functions only.

Ray decides which trial runs where, and starts it again where a process died; everything else is ours. The
run folders say what is done, so that a sweep goes on by being started again, and nothing is ever read back
from Ray's own files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dino_lab.errors import UserError
from dino_lab.runs.status import Ending, read_ending, write_ending
from dino_lab.sweeps.plan.model import Resources, Scheduler
from dino_lab.sweeps.processes.trial import Task
from dino_lab.sweeps.ray.feed import Queue, feed
from dino_lab.sweeps.ray.schedulers import choose_scheduler

_OVER = ("stopped", "finished", "collapsed")
STOP_FILE = "stop"  # of the folder of a sweep: once it is there, every trial saves and ends


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
    chosen: int  # trials that are not known before, at most
    at_once: int  # trials on this machine


def dispatch(
    queue: Queue,
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
        _refuse_foreign_storage(folder, queue.paths)
    own = folder / "tune"
    shutil.rmtree(own, ignore_errors=True)
    try:
        relay = _relay(queue, watcher, stop, folder / STOP_FILE)
        _tuner(queue, rules, relay, stop, own, server).fit()
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _tuner(
    queue: Queue, rules: Rules, relay: Any, stop: Callable[[], bool], storage: Path, server: str | None
) -> Any:
    from ray import tune

    share = {"cpu": rules.resources.cpu, "gpu": rules.resources.gpu}
    searched = rules.chosen > 0
    scheduler = rules.scheduler
    metric, mode = rules.metric, rules.mode
    if scheduler is not None and scheduler.metric is not None:
        metric, mode = scheduler.metric, scheduler.mode
    return tune.Tuner(
        tune.with_resources(_trainable(metric, server), share),
        param_space={}
        if searched
        else {"pack": tune.grid_search([relay.known(pack) for pack in queue.known])},
        tune_config=tune.TuneConfig(
            search_alg=feed(queue, relay.known, stop) if searched else None,
            num_samples=len(queue.known) + rules.chosen if searched else 1,
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
            callbacks=[relay],
        ),
    )


def _relay(queue: Queue, watcher: Watcher, stop: Callable[[], bool], stop_file: Path) -> Any:
    """What Tune tells."""
    from ray import tune

    by_hash: dict[str, Task] = {}
    ended: set[str] = set()
    steps: dict[str, int] = {}

    def tasks_of(trial: Any) -> list[Task]:
        """Those of a trial of Tune's that have not ended."""
        return [by_hash[name] for name in trial.config["pack"]["hashes"] if name not in ended]

    def end(task: Task, ending: Ending) -> None:
        if task.hash in ended:
            return  # one of a pack, whose process died later and began again
        ended.add(task.hash)
        watcher.ended(task, ending)
        queue.over(task)

    class Relay(tune.Callback):  # type: ignore[misc]
        """Tells the watcher how it goes, and the trials when to stop."""

        def known(self, pack: list[Task]) -> dict[str, list[str]]:
            """What Tune is given for a pack; what it says of it is understood from then on."""
            by_hash.update({task.hash: task for task in pack})
            return {"hashes": [task.hash for task in pack], "texts": [task.text() for task in pack]}

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune pickles it into a file that nobody reads

        def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if stop() and not stop_file.exists():
                stop_file.touch()

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            task = by_hash.get(result.get("of", ""))
            if task is None:
                return
            if "ending" in result:
                end(task, Ending(**result["ending"]))
            elif "row" in result:
                steps[task.hash] = int(result["row"]["step"])
                watcher.row(task, result["row"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for task in tasks_of(trial):
                ending = Ending("stopped", steps.get(task.hash, 0))
                # The last that a scheduler ended goes with its worker, and has no time to say so itself.
                if read_ending(task.folder).status not in _OVER:
                    write_ending(task.folder, ending)
                end(task, ending)

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            for task in tasks_of(trial):
                watcher.died(task)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ending = Ending("failed", reason=f"its process died {trial.num_failures} times")
            for task in tasks_of(trial):
                write_ending(task.folder, ending)
                end(task, ending)

    return Relay()


def _trainable(metric: str, server: str | None) -> Callable[[dict[str, Any]], None]:
    """A function of its own for each sweep: Tune writes the resources on it."""

    def trial(config: dict[str, Any]) -> None:
        from dino_lab.sweeps.ray.worker import run

        run(config["pack"]["texts"], metric, server)

    return trial


def _refuse_foreign_storage(folder: Path, paths: Iterable[str]) -> None:
    """Every machine of the cluster must see the run folders, and what trials read, under the same path."""
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
        with contextlib.suppress(OSError):  # what others have filled stays
            for empty in (folder, *folder.parents[:3]):
                empty.rmdir()
        raise UserError(f"--address: {missing[0]}; use shared storage")
