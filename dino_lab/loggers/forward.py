"""A listener that hands a run on to loggers. What goes wrong there is told, and costs the run nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from dino_lab.errors import UserError
from dino_lab.loggers.logger import About, Logger, make_logger
from dino_lab.loggers.names import LoggerName
from dino_lab.training.build import Run
from dino_lab.training.diagnostics import Verdict
from dino_lab.training.loop import Row

logger = logging.getLogger("dino_lab")


class Forward:
    """Tells every logger how a run begins, each row, and how it ends; `status` is set before it is left."""

    def __init__(self, names: Sequence[LoggerName]) -> None:
        self._waiting = {name: make_logger(name) for name in dict.fromkeys(names)}
        self._started: dict[LoggerName, Logger] = {}
        self.places: dict[str, str] = {}
        self.status = "failed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self._started):
            self._safely(name, lambda log: log.finish(self.status))

    def started(self, run: Run, folder: Path, step: int) -> None:
        """Start them all; a UserError, before the first step, where one cannot."""
        about = About(run.spec.dump(), run.spec.name, run.spec.hash, folder, step)
        for name, log in self._waiting.items():
            try:
                self.places[name] = log.start(about)
            except Exception as error:
                raise UserError(f"--log {name}: {_reason(error)}") from error
            self._started[name] = log

    def row(self, row: Row, verdict: Verdict) -> None:
        """Send the numbers; a dot in a name becomes a slash, by which trackers group their charts."""
        numbers = {key.replace(".", "/"): value for key, value in row.numbers.items()}
        for name in list(self._started):
            self._safely(name, lambda log: log.row(row.step, {"epoch": row.epoch, **numbers}))

    def progressed(self, step: int, total: int) -> None:
        """Nothing."""

    def saved(self, step: int) -> None:
        """Nothing."""

    def _safely(self, name: LoggerName, tell: Callable[[Logger], None]) -> None:
        try:
            tell(self._started[name])
        except Exception as error:
            del self._started[name]
            logger.warning("--log %s: no more is logged there (%s)", name, _reason(error))


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
