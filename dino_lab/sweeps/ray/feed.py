"""Trials that are chosen while others run, handed to Ray Tune as it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dino_lab.sweeps.processes.trial import Task


class Queue(Protocol):
    """The trials that are known, and those that are chosen by how others ended."""

    known: list[list[Task]]  # packs; most are of one

    @property
    def paths(self) -> Sequence[str]:
        """Files and folders that trials need, absolute."""
        ...

    def chosen(self) -> Task | None:
        """The next that was not known; None once there are no more."""
        ...

    def over(self, task: Task) -> None:
        """A trial has ended, and its folder says how."""
        ...


def feed(queue: Queue, known: Callable[[list[Task]], dict[str, list[str]]], stop: Callable[[], bool]) -> Any:
    """What Tune asks for the next trial, and `known` then makes of it what Tune is given.

    How a trial ended is heard elsewhere.
    """
    from ray.tune.search import Searcher

    before = iter(queue.known)

    class Feed(Searcher):  # type: ignore[misc]
        """First the trials that are known, then those that are chosen."""

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune pickles it into a file that nobody reads

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            pack = None if stop() else next(before, None) or self._chosen()
            return Searcher.FINISHED if pack is None else {"pack": known(pack)}

        def _chosen(self) -> list[Task] | None:
            task = queue.chosen()
            return None if task is None else [task]

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return Feed()
