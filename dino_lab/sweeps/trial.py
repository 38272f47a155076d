"""One trial in whatever process it is: a spec as text in, rows out, and how it ended in the run's folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_lab.errors import UserError
from dino_lab.plugin_file import load_plugins
from dino_lab.reports.ending import Ending, EndingStatus, write_ending

if TYPE_CHECKING:
    from dino_lab.protocols import SharedData
    from dino_lab.spec.model import Spec

Report = Callable[[Mapping[str, float]], None]
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


def run_trial(
    task: Task,
    spec: Spec,
    report: Report,
    asked: Callable[[], bool] = lambda: False,
    weak: Callable[[], bool] = lambda: False,
    shared: SharedData | None = None,
) -> Ending:
    """Train to the end, or until the sweep is `asked` to stop, also by its stop file, or this trial is too
    `weak` to go on. Whatever goes wrong is an ending, too.
    """
    import torch

    from dino_lab.registry import registry
    from dino_lab.training.experiment import execute

    torch.set_num_threads(task.threads)

    def stop() -> bool:
        return asked() or weak() or os.path.exists(task.stop_file)

    try:
        if asked() or os.path.exists(task.stop_file):
            return Ending("interrupted", reason="not started")
        outcome = execute(
            spec,
            registry,
            runs=Path(task.runs),
            device=torch.device(task.device),
            checkpoint_every=task.checkpoint_every,
            listeners=[_Reporter(report)],
            stop=stop,
            shared=shared,
        )
    except Exception as error:
        ending = Ending("failed", reason=_in_words(error))
    else:
        if outcome.status == "already finished":
            return Ending("finished", outcome.step, outcome.total, outcome.verdict.name, "", outcome.seconds)
        status: EndingStatus = outcome.status
        if status == "interrupted" and weak():
            status = "stopped"
        ending = Ending(
            status, outcome.step, outcome.total, outcome.verdict.name, outcome.reason, outcome.seconds
        )
    write_ending(task.folder, ending)
    return ending


def _in_words(error: Exception) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "out of memory"
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"


class _Reporter:
    """A listener that hands on every row."""

    def __init__(self, report: Report) -> None:
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
