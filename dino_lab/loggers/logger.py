"""What every logger is told, and how one is had by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dino_lab.loggers.names import LoggerName

PROJECT = "dino-lab"  # where the logger's own environment says nothing else


@dataclass(frozen=True)
class About:
    """The run that is logged. The same spec has the same name, by which a resumed run is found again."""

    spec: Mapping[str, Any]  # plain data, every default written out
    group: str  # the spec's name
    hash: str
    folder: Path
    step: int  # above 0 where it is resumed

    @property
    def name(self) -> str:
        """The spec's name and hash."""
        return f"{self.group}-{self.hash}"


class Logger(Protocol):
    """Stays on this machine, unless the logger's own environment variables say otherwise.

    Constructed before a run is built: a UserError where its package is missing.
    """

    def __init__(self) -> None: ...
    def start(self, about: About) -> str:
        """Begin the run, or go on with it; the line that says where it is to be seen."""
        ...

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a row, named as paths."""
        ...

    def finish(self, status: str) -> None:
        """End: "finished", "interrupted", "collapsed" or "failed"."""
        ...


def make_logger(name: LoggerName) -> Logger:
    """The logger of a name."""
    module = importlib.import_module(f"dino_lab.loggers.{name}")
    logger: Logger = getattr(module, f"{name.capitalize()}Logger")()
    return logger
