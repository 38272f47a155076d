"""Tasks of a sweep in the order in which they start."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_lab.spec.file import dump_yaml
from dino_lab.sweeps.plan.optuna_search import OptunaSearch
from dino_lab.sweeps.plan.plan import Plan, PlannedTrial
from dino_lab.sweeps.processes.trial import Task

STOP_FILE = "stop"  # in the sweep's folder: while it exists, every trial saves and ends


@dataclass(frozen=True)
class TrialQueue:
    """What is left to do: the known stacks, then the trials that a search chooses."""

    plan: Plan
    stacks: Sequence[Sequence[PlannedTrial]]
    search: OptunaSearch | None
    runs: Path
    device: str
    checkpoint_every: float  # seconds
    plugins: Sequence[Path]

    @property
    def known(self) -> list[list[Task]]:
        """The tasks of each stack."""
        return [[self._task(trial) for trial in stack] for stack in self.stacks]

    def chosen(self) -> Task | None:
        """The next trial that the search chooses; None once there are no more."""
        trial = self.search.next() if self.search is not None else None
        return self._task(trial) if trial is not None else None

    def over(self, task: Task) -> None:
        """A trial has ended, and its folder holds its ending."""
        if self.search is not None:
            self.search.over(task.hash)

    @property
    def paths(self) -> list[str]:
        """Files and folders that trials need: working directory, plugins, and existing paths in specs."""
        texts = [text for trial in self.plan.trials for text in _texts(trial.spec.dump())]
        named = [Path(text) for text in texts if os.sep in text and os.path.exists(text)]
        return list(dict.fromkeys(str(path.absolute()) for path in (Path(), *self.plugins, *named)))

    def __iter__(self) -> Iterator[list[Task]]:
        yield from self.known
        while (task := self.chosen()) is not None:
            yield [task]

    def _task(self, trial: PlannedTrial) -> Task:
        return Task(
            label=trial.label,
            name=trial.spec.name,
            hash=trial.key,
            spec=dump_yaml(trial.spec),
            runs=str(self.runs.resolve()),
            folder=str(trial.folder(self.runs.resolve())),
            directory=str(Path.cwd()),
            device=self.device,
            threads=self.plan.sweep.resources.cpu,
            processes=self.plan.sweep.resources.ranks,
            restarts=self.plan.sweep.max_failures,
            checkpoint_every=self.checkpoint_every,
            stop_file=str(self.plan.folder(self.runs).resolve() / STOP_FILE),
            plugins=tuple(str(file.resolve()) for file in self.plugins),
        )


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
