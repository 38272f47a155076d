"""Trials whose processes are on several machines.

The first process of such a trial is started by the worker that Tune gave it, like that of any other trial.
Each of the others is started by an actor in the trial's placement group, which Tune has made and frees; the
actors end with the worker. They meet at a port of the worker's machine.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from dino_lab.distributed.world import World
from dino_lab.errors import first_line
from dino_lab.runs.status import Status
from dino_lab.sweeps.processes.trial import Task, conclude
from dino_lab.sweeps.processes.trial_client import TrialClient, TrialDied

_START = 300.0  # seconds in which the actors of other processes have to start
_LOOK = 0.5  # seconds between two looks at the other processes
_ANSWER = 20.0  # seconds in which the actor of another process has to answer
_LAST = 30.0  # seconds in which the other processes have to end after the first


class SpreadTrials:
    """Trials of one worker, one after the other, each on the machines of the worker's placement group."""

    def __init__(self, client: TrialClient) -> None:
        self._client = client
        self._actors: list[Any] = []

    def run(
        self,
        task: Task,
        row: Callable[[str, Mapping[str, Any]], None],
        ended: Callable[[str, Status], None],
        waiting: Callable[[str], None],
    ) -> None:
        """Run a trial to its end; the hooks are called with its hash, by its first process.

        If a hook raises, the trial saves and ends first. TrialDied if one of its processes ended
        unexpectedly, or its machine does not answer; nothing of the trial runs then.
        """
        self._actors = self._actors or _actors(task.processes)

        def checked(name: str, ending: Status) -> None:
            if ending.state == "failed":
                self._refuse_lost_machines()
            ended(name, ending)

        mine, *places = worlds(*self._nodes(), _meeting())
        pairs = zip(self._actors, places, strict=True)
        running = [actor.train.remote(replace(task, place=place).text()) for actor, place in pairs]
        others = _Others(running)
        try:
            with others.watched(self._client.abort):
                self._client.run([replace(task, place=mine)], row, checked, waiting)
        except TrialDied as died:
            self._kill()
            if others.died:
                raise TrialDied(others.died) from died
            if others.failed is None:
                raise
            conclude(task, others.failed)
            ended(task.hash, others.failed)
        finally:
            if not others.end():
                self._kill()

    def _nodes(self) -> tuple[str, list[str]]:
        """The machine of this worker, and those of the actors; TrialDied if one does not answer."""
        import ray

        try:
            found = ray.get([actor.node.remote() for actor in self._actors], timeout=_START)
        except ray.exceptions.RayError as error:
            self._kill()
            raise TrialDied(f"a process of the trial did not start: {first_line(error)}") from None
        return ray.get_runtime_context().get_node_id(), found

    def _refuse_lost_machines(self) -> None:
        """TrialDied if the actor of another process does not answer.

        The first process learns of a machine that is gone as an error in the middle of a step.
        """
        import ray

        try:
            ray.get([actor.node.remote() for actor in self._actors], timeout=_ANSWER)
        except ray.exceptions.RayError as error:
            raise TrialDied(f"a machine of the trial is lost: {first_line(error)}") from None

    def _kill(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


class _Others:
    """All processes of a trial but the first, and what is known of them."""

    def __init__(self, running: Sequence[Any]) -> None:
        self._running = running
        self.died = ""  # why a process ended unexpectedly
        self.failed: Status | None = None  # what a process said that could not go on

    @contextmanager
    def watched(self, abort: Callable[[], None]) -> Iterator[None]:
        """Within it, `abort` is called again and again once a process has died or failed."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over, abort), daemon=True, name="processes")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def end(self) -> bool:
        """Whether all have ended, which is waited for."""
        import ray

        ended, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=_LAST)
        return len(ended) == len(self._running)

    def _watch(self, over: threading.Event, abort: Callable[[], None]) -> None:
        import ray

        left = list(self._running)
        while not over.wait(0 if left else _LOOK):
            ended, left = ray.wait(left, timeout=_LOOK) if left else ([], left)
            for one in ended:
                try:
                    ending = Status(**ray.get(one))
                except ray.exceptions.RayError as error:
                    self.died = self.died or _reason(error)
                else:
                    self.failed = self.failed or (ending if ending.state == "failed" else None)
            if self.died or self.failed:
                abort()  # not once: the first process may not have begun


class _Process:
    """An actor that runs one process of each trial."""

    def __init__(self) -> None:
        self._client = TrialClient(None)

    def node(self) -> str:
        """The machine it is on."""
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def train(self, text: str) -> dict[str, Any]:
        """Take part in a trial; how it ended here. TrialDied if the process ended unexpectedly."""
        from dataclasses import asdict

        endings: list[Status] = []
        self._client.run([Task.of(text)], lambda *_: None, lambda _, ending: endings.append(ending))
        return asdict(endings[0])


def worlds(here: str, nodes: Sequence[str], meeting: str) -> list[World]:
    """The places of a process on the machine `here`, and of others on the machines `nodes`.

    The process here is the first one. The others are numbered in the order given, on each machine too.
    """
    places, seen = [here, *nodes], dict.fromkeys([here, *nodes], 0)
    found = []
    for rank, node in enumerate(places):
        found.append(World(rank, len(places), seen[node], places.count(node), meeting))
        seen[node] += 1
    return found


def _actors(processes: int) -> list[Any]:
    """An actor for each process but the first, in the parts of the placement group after the first."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = ray.util.get_current_placement_group()
    kind = ray.remote(_Process)
    return [
        kind.options(
            num_cpus=group.bundle_specs[i]["CPU"],
            num_gpus=group.bundle_specs[i].get("GPU", 0),
            max_concurrency=2,  # it answers while it trains
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, i),
        ).remote()
        for i in range(1, processes)
    ]


def _meeting() -> str:
    """A free port of this machine, as torch.distributed's init_method."""
    import ray

    with socket.socket() as free:
        free.bind(("", 0))
        return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"


def _reason(error: Exception) -> str:
    """Why a process of a trial died, in one line."""
    cause = getattr(error, "cause", None)
    return str(cause) if isinstance(cause, TrialDied) else first_line(error)
