"""A search algorithm of Ray Tune that hands out tasks when Tune asks for a trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dino_lab.sweeps.processes.trial import Task


class TaskSource(Protocol):
    """The stacks that are known, and the trials that are chosen by how others ended."""

    @property
    def known(self) -> list[list[Task]]:
        """The known stacks; most are of one trial."""
        ...

    @property
    def paths(self) -> Sequence[str]:
        """Files and folders that trials need, absolute."""
        ...

    def chosen(self) -> Task | None:
        """The next trial that was not known; None once there are no more."""
        ...

    def over(self, task: Task) -> None:
        """A trial has ended, and its folder holds its ending."""
        ...


def search_algorithm(
    source: TaskSource, config: Callable[[list[Task]], dict[str, list[str]]], stop: Callable[[], bool]
) -> Any:
    """The algorithm that suggests the known stacks first; `config` makes of a stack what Tune is given.

    Endings reach the source by a callback of Tune, not by the algorithm.
    """
    from ray.tune.search import Searcher

    before = iter(source.known)

    class TaskSearcher(Searcher):  # type: ignore[misc]
        """First the stacks that are known, then those that are chosen."""

        def __reduce__(self) -> tuple[Any, ...]:
            return object, ()  # Tune pickles it into a file that nobody reads

        def suggest(self, trial_id: str) -> dict[str, Any] | str:
            stack = None if stop() else next(before, None) or self._chosen()
            return Searcher.FINISHED if stack is None else {"stack": config(stack)}

        def _chosen(self) -> list[Task] | None:
            task = source.chosen()
            return None if task is None else [task]

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass

        def save(self, checkpoint_path: str) -> None:
            pass

        def restore(self, checkpoint_path: str) -> None:
            pass

    return TaskSearcher()
