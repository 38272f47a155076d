"""trackio: a file in its own folder, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a place."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from typing import Any

from dino_lab.extras import want
from dino_lab.loggers.logger import PROJECT, About


class TrackioLogger:
    """A run of trackio, found again by its name; TRACKIO_DIR says where it lies."""

    def __init__(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self._trackio: Any = want("trackio", "trackio", "--log trackio")

    def start(self, about: About) -> str:
        """Begin, or go on; rows that were sent already are there twice."""
        with _silence():
            self._run = self._trackio.init(
                project=PROJECT,
                name=about.name,
                group=about.group,
                config=dict(about.spec),
                resume="allow",
                embed=False,
            )
        return f"trackio show --project {PROJECT}"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step of trackio."""
        self._run.log(dict(numbers), step=step)

    def finish(self, status: str) -> None:
        """Wait until everything is written."""
        with _silence():
            self._trackio.finish()


def _silence() -> contextlib.redirect_stdout[io.StringIO]:
    """It prints to a terminal that may show a live panel."""
    return contextlib.redirect_stdout(io.StringIO())
