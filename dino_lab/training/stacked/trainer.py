"""Several runs from start to end in one process, their networks as one stack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import groupby

from dino_lab.protocols import SharedData, ability
from dino_lab.registry import Registry
from dino_lab.runs.status import State
from dino_lab.spec.model import Spec
from dino_lab.training.loop import NoBatch, NonFinite, Row
from dino_lab.training.stacked.loop import train_each
from dino_lab.training.trainer import FitOptions, Listener, Outcome, Stop, Trainer, prepared, train_before

Ended = tuple[Spec, Outcome | Exception]


def fit_stacked(
    specs: Sequence[Spec],
    registry: Registry,
    options: FitOptions,
    *,
    listeners: Callable[[Spec], Sequence[Listener]],
    stop: Stop,
    shared: SharedData | None = None,
) -> Iterator[Ended]:
    """As `fit`, for specs that may be stacked (see planning.py): each with how it ended, once it has.

    A failure ends its own run only. Runs that have come equally far are trained together.
    """
    with ExitStack() as all_runs:
        ready: list[_Member] = []
        for spec in specs:
            held = all_runs.enter_context(ExitStack())
            try:
                if (ended := train_before(spec, registry, options, stop)) is not None:
                    yield spec, ended
                    continue
                trainer = held.enter_context(prepared(spec, registry, options, listeners(spec), shared))
            except Exception as error:
                yield spec, error
                continue
            if isinstance(trainer, Outcome):
                yield spec, trainer
                continue
            data = ability(trainer.run.data, SharedData)
            if data is not None and data.resident:
                shared = data  # which lies on the device now, once for all
            ready.append(_Member(trainer, held))
        ready.sort(key=lambda one: one.trainer.step)
        for _, group in groupby(ready, key=lambda one: one.trainer.step):
            yield from _Group(list(group), stop).train()


class _Member:
    """A trainer, and what holds its folder."""

    def __init__(self, trainer: Trainer, held: ExitStack) -> None:
        self.trainer, self._held = trainer, held

    def close(self, error: Exception | None) -> None:
        """Let the folder go; an error is recorded there."""
        try:
            self._held.__exit__(type(error) if error else None, error, None)
        except Exception as again:
            if again is not error:
                raise


class _Group:
    """Runs that have come equally far, and go on together."""

    def __init__(self, members: Sequence[_Member], stop: Stop) -> None:
        self._going, self._stop = list(members), stop
        self._ended: list[Ended] = []

    def train(self) -> Iterator[Ended]:
        """Each, once it has ended."""
        hashes = {one: one.trainer.folder.hash for one in self._going}
        self._each(lambda one: one.trainer.begin([hashes[other] for other in hashes if other is not one]))
        while self._going:
            try:
                self._steps()
            except Exception as error:  # of what they have in common, such as memory
                self._fail(error)
            yield from self._take_ended()
        yield from self._take_ended()

    def _steps(self) -> None:
        """Until one has ended, without which the others have to go on."""
        members = list(self._going)
        for one in members:
            one.trainer.start_clock()
        for rows in train_each([one.trainer.run for one in members], members[0].trainer.step):
            self._take(dict(zip(members, rows, strict=True)))
            if len(self._going) < len(members):
                return
        self._each(lambda one: one.trainer.end("finished"))

    def _take(self, rows: Mapping[_Member, Row | NonFinite]) -> None:
        """A step was made. All clocks are read first, so that no evaluation makes another run look slow."""
        self._each(lambda one: _measured(one.trainer, rows[one]))
        self._each(lambda one: _recorded(one.trainer, rows[one]))
        if not self._going:
            return
        row = rows[self._going[0]]
        assert isinstance(row, Row)
        if row.step < row.total and (why := self._stop()):
            state: State = "interrupted" if why is True else why
            self._each(lambda one: one.trainer.end(state))
        elif row.numbers and row.step < row.total and any(one.trainer.is_due for one in self._going):
            self._each(lambda one: one.trainer.save())  # all, so that they go on together, too
        if row.numbers:
            self._each(lambda one: one.trainer.start_clock())

    def _fail(self, error: Exception) -> None:
        if isinstance(error, NoBatch):
            self._each(lambda one: one.trainer.save())
            error = error.cause
        for one in list(self._going):
            self._end(one, error)

    def _each(self, action: Callable[[_Member], Outcome | None]) -> None:
        """Do it with each that is going; an outcome, or an exception, ends it."""
        for one in list(self._going):
            outcome: Outcome | Exception | None
            try:
                outcome = action(one)
            except Exception as error:
                outcome = error
            if outcome is not None:
                self._end(one, outcome)

    def _end(self, one: _Member, outcome: Outcome | Exception) -> None:
        one.close(outcome if isinstance(outcome, Exception) else None)
        self._going.remove(one)
        self._ended.append((one.trainer.run.spec, outcome))

    def _take_ended(self) -> list[Ended]:
        """Those that have ended since it was asked last."""
        ended, self._ended = self._ended, []
        return ended


def _measured(trainer: Trainer, row: Row | NonFinite) -> Outcome | None:
    if isinstance(row, NonFinite):
        return trainer.end("failed", str(row))
    trainer.measure(row)
    return None


def _recorded(trainer: Trainer, row: Row | NonFinite) -> Outcome | None:
    assert isinstance(row, Row)
    trainer.record(row)
    if trainer.has_collapsed:
        return trainer.end("collapsed")
    return trainer.end("stopped") if trainer.fell_below and trainer.step < trainer.run.total_steps else None
