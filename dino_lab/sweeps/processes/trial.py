"""Trials in whatever process it is: specs as text in, rows out, and how each ended in its run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.status import Ending, read_ending, write_ending

if TYPE_CHECKING:
    from dino_lab.protocols import SharedData
    from dino_lab.spec.model import Spec
    from dino_lab.training.execution import Outcome

Numbers = Mapping[str, float]
loaded: set[str] = set()  # plugin files of this process


@dataclass(frozen=True)
class Task:
    """What a trial needs to know; plain data, so that it can cross any border."""

    label: str
    name: str  # of the spec
    hash: str
    spec: str  # YAML, every default written out
    runs: str
    place: str  # the folder that relative paths of the spec start from
    device: str
    threads: int
    checkpoint_every: float
    stop_file: str  # once it is there, the trial saves and ends
    plugins: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name / self.hash

    def text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> Task:
        """The task that `text` gave."""
        plain = json.loads(text)
        return Task(**{**plain, "plugins": tuple(plain["plugins"])})


def prepare(task: Task) -> Spec:
    """The task's spec in a process of its own, plugins imported once; touches no device."""
    load_plugins([Path(file) for file in task.plugins if file not in loaded])
    loaded.update(task.plugins)
    return spec_of(task)


def spec_of(task: Task) -> Spec:
    """The task's spec; imports what it names."""
    from dino_lab.spec.file import load_text

    spec = load_text(task.spec, f"{task.hash}.yaml").spec
    if spec.hash != task.hash:
        raise UserError(f"{task.hash}: read as {spec.hash} here; is this the same version of dino-lab?")
    return spec


def run_trials(
    tasks: Sequence[Task],
    specs: Sequence[Spec],
    report: Callable[[Task, Numbers], None],
    ended: Callable[[Task, Ending], None],
    *,
    asked: Callable[[], bool] = lambda: False,
    weak: Callable[[], bool] = lambda: False,
    shared: SharedData | None = None,
) -> None:
    """Train one trial, or a pack, to the end, or until it should stop; whatever goes wrong is an ending, too.

    It should once the sweep is `asked` to stop, also by its stop file, or the trial is too `weak` to go on.
    """
    import torch

    from dino_lab.registry import registry
    from dino_lab.training.experiment import execute_together

    first, task_of, going = tasks[0], {task.hash: task for task in tasks}, []
    torch.set_num_threads(first.threads)

    def stop() -> bool:
        return asked() or weak() or os.path.exists(first.stop_file)

    if asked() or os.path.exists(first.stop_file):
        for task in tasks:
            ended(task, Ending("interrupted", reason="not started"))
        return
    for task, spec in zip(tasks, specs, strict=True):
        ending = read_ending(task.folder)
        if ending.status == "collapsed":  # before the process of its pack died
            ended(task, ending)
        else:
            going.append(spec)
    for spec, outcome in execute_together(
        going,
        registry,
        runs=Path(first.runs),
        device=torch.device(first.device),
        checkpoint_every=first.checkpoint_every,
        listeners=lambda spec: [_Reporter(partial(report, task_of[spec.hash]))],
        stop=stop,
        shared=shared,
    ):
        task = task_of[spec.hash]
        ending = _ending(outcome, weak)
        if isinstance(outcome, Exception) or outcome.status != "already finished":
            write_ending(task.folder, ending)
        ended(task, ending)


def _ending(outcome: Outcome | Exception, weak: Callable[[], bool]) -> Ending:
    if isinstance(outcome, Exception):
        return Ending("failed", reason=_in_words(outcome))
    known = (outcome.step, outcome.total, outcome.verdict.name, outcome.reason, outcome.seconds)
    if outcome.status == "already finished":
        return Ending("finished", *known)
    return Ending("stopped" if outcome.status == "interrupted" and weak() else outcome.status, *known)


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


class _Reporter:
    """A listener that hands on every row."""

    def __init__(self, report: Callable[[Numbers], None]) -> None:
        self._report = report

    def started(self, run: Any, folder: Path, step: int) -> None:
        """Say that the parts are built, and after how many steps it goes on."""
        self._report({"step": step, "total": run.total_steps})

    def row(self, row: Any, verdict: Any) -> None:
        """Hand on the numbers."""
        self._report({"step": row.step, "total": row.total, "epoch": row.epoch, **row.numbers})

    def progressed(self, step: int, total: int) -> None:
        """Nothing: rows are enough."""

    def saved(self, step: int) -> None:
        """Nothing."""
