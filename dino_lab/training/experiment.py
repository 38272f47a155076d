"""From a spec to a run that has ended: alone, or with others in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import cast

import torch

from dino_lab.protocols import SharedData
from dino_lab.registry import Registry
from dino_lab.runs.folder import RunFolder
from dino_lab.spec.model import Spec
from dino_lab.training.build import build
from dino_lab.training.diagnostics import Verdict
from dino_lab.training.execution import Execution, Listener, Outcome
from dino_lab.training.loop import NonFinite, Row, train_together

Ended = tuple[Spec, Outcome | Exception]


def execute(
    spec: Spec,
    registry: Registry,
    *,
    runs: Path,
    device: torch.device,
    checkpoint_every: float,
    listeners: Sequence[Listener] = (),
    stop: Callable[[], bool] = lambda: False,
    shared: SharedData | None = None,
) -> Outcome:
    """Train a spec to its end, or on from where it stopped; `checkpoint_every` is in seconds.

    `shared` is what the spec's own data part would give, where it is in memory already.
    """
    [(_, outcome)] = execute_together(
        [spec],
        registry,
        runs=runs,
        device=device,
        checkpoint_every=checkpoint_every,
        listeners=lambda _: listeners,
        stop=stop,
        shared=shared,
    )
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def execute_together(
    specs: Sequence[Spec],
    registry: Registry,
    *,
    runs: Path,
    device: torch.device,
    checkpoint_every: float,
    listeners: Callable[[Spec], Sequence[Listener]],
    stop: Callable[[], bool],
    shared: SharedData | None = None,
) -> Iterator[Ended]:
    """As `execute`, for specs that go into one pack (see packing.py): each with how it ended, once it has.

    What goes wrong with one ends that one. Those that have come equally far train together.
    """
    with ExitStack() as held:
        prepared: list[Execution] = []
        for spec in specs:
            try:
                folder = RunFolder(runs / spec.name / spec.hash)
                held.enter_context(folder.locked())
                if (result := folder.result()) is not None:
                    verdict = Verdict(**result.pop("verdict"))
                    yield spec, Outcome("already finished", folder.path, verdict=verdict, **result)
                    continue
                run = build(spec, registry, device, shared)
                if getattr(run.data, "resident", False):
                    shared = cast(SharedData, run.data)  # which lies on the device now, once for all
                prepared.append(Execution(run, folder, listeners(spec)))
            except Exception as error:
                yield spec, error
        prepared.sort(key=lambda one: one.step)
        for _, group in groupby(prepared, key=lambda one: one.step):
            yield from _Pack(list(group), checkpoint_every, stop).train()


class _Pack:
    """Executions that have come equally far, and go on together."""

    def __init__(
        self, executions: Sequence[Execution], checkpoint_every: float, stop: Callable[[], bool]
    ) -> None:
        self._going = list(executions)
        self._checkpoint_every, self._stop = checkpoint_every, stop
        self._ended: list[Ended] = []

    def train(self) -> Iterator[Ended]:
        """Each, once it has ended."""
        hashes = [one.run.spec.hash for one in self._going]
        try:
            self._each(lambda one: one.begin([other for other in hashes if other != one.run.spec.hash]))
            while self._going:
                try:
                    self._steps()
                except Exception as error:  # of what they have in common, such as memory
                    self._each(partial(_raise, error))
                yield from self._taken()
            yield from self._taken()
        finally:
            for one in self._going:
                one.close()

    def _steps(self) -> None:
        """Until one has ended, without which the others have to go on."""
        runs = [one.run for one in self._going]
        for one in self._going:
            one.start_clock()
        for rows in train_together(runs, self._going[0].step):
            self._take(dict(zip(self._going, rows, strict=True)))
            if len(self._going) < len(runs):
                return
        self._each(_finish)

    def _take(self, rows: Mapping[Execution, Row | NonFinite]) -> None:
        """A step was made. All clocks are read first, so that no evaluation makes another run look slow."""
        self._each(lambda one: _measure(one, rows[one]))
        self._each(lambda one: _judge(one, rows[one]))
        if not self._going:
            return
        row = rows[self._going[0]]
        assert isinstance(row, Row)
        due = time.monotonic() - self._checkpoint_every
        if row.numbers and any(one.saved_at <= due for one in self._going):
            self._each(Execution.save)  # all, so that they go on together, too
        if self._stop() and row.step < row.total:
            self._each(_interrupt)
        if row.numbers:
            self._each(Execution.start_clock)

    def _each(self, action: Callable[[Execution], Outcome | None]) -> None:
        """Do it with each that is going; an outcome, or what goes wrong, ends it."""
        for one in list(self._going):
            outcome: Outcome | Exception | None
            try:
                outcome = action(one)
            except Exception as error:
                outcome = error
            if outcome is not None:
                one.close()
                self._going.remove(one)
                self._ended.append((one.run.spec, outcome))

    def _taken(self) -> list[Ended]:
        """Those that have ended since it was asked last."""
        ended, self._ended = self._ended, []
        return ended


def _measure(one: Execution, row: Row | NonFinite) -> Outcome | None:
    if isinstance(row, NonFinite):
        return one.end("failed", str(row))
    one.measure(row)
    return None


def _judge(one: Execution, row: Row | NonFinite) -> Outcome | None:
    assert isinstance(row, Row)
    if one.take(row):
        return None
    one.save()
    return one.end("collapsed")


def _interrupt(one: Execution) -> Outcome:
    one.save()
    return one.end("interrupted")


def _finish(one: Execution) -> Outcome:
    one.save()
    return one.end("finished")


def _raise(error: Exception, one: Execution) -> None:
    raise error
