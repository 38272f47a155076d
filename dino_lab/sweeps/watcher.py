"""Hooks that a sweep calls while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dino_lab.runs.status import Status
    from dino_lab.sweeps.processes.trial import Task
    from dino_lab.sweeps.session import Overview


class TrialWatcher(Protocol):
    """Hooks of the trials; each is called in the process that started the sweep."""

    def waiting(self, task: Task) -> None:
        """Another process is training the trial's spec; the trial starts when that process ends."""
        ...

    def row(self, task: Task, numbers: Mapping[str, Any]) -> None:
        """A trial has started (`step` and `total` alone), or has written a row."""
        ...

    def ended(self, task: Task, ending: Status) -> None:
        """A trial has ended."""
        ...

    def died(self, task: Task) -> None:
        """The process of a trial died; the trial continues in another one."""
        ...


class SweepWatcher(TrialWatcher, Protocol):
    """Hooks of a whole sweep."""

    def planned(self, overview: Overview) -> None:
        """The plan is complete and checked; nothing has been trained yet."""
        ...


class Silent:
    """A watcher that does nothing."""

    def planned(self, overview: Overview) -> None:
        """Nothing."""

    def waiting(self, task: Task) -> None:
        """Nothing."""

    def row(self, task: Task, numbers: Mapping[str, Any]) -> None:
        """Nothing."""

    def ended(self, task: Task, ending: Status) -> None:
        """Nothing."""

    def died(self, task: Task) -> None:
        """Nothing."""
