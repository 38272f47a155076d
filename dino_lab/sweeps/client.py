"""The other end of a server: starts it, gives it a task, hears of its rows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

from dino_lab.reports.ending import Ending
from dino_lab.sweeps.server import STOP
from dino_lab.sweeps.trial import Task

_PATIENCE = 60.0  # seconds that a trial which was asked to end may take to save


class TrialDied(Exception):
    """The process of a trial ended without a word."""


class Server:
    """A running server; lives as long as the process that holds it."""

    def __init__(self) -> None:
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process is
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dino_lab.sweeps.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            text=True,
            env=os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},  # a copy can use no CUDA that was begun
            start_new_session=True,  # Ctrl-C is for whoever started the sweep, and reaches us as a stop
        )

    @property
    def lives(self) -> bool:
        """Whether it can take another task."""
        return self._process.poll() is None

    def run(self, task: Task, row: Callable[[Mapping[str, Any]], None]) -> Ending:
        """One trial. If `row` raises, the trial saves and ends first."""
        self._send(task.text())
        try:
            return self._hear(row)
        except BaseException:
            with contextlib.suppress(TrialDied):
                self._send(STOP)
                self._hear(lambda _: None)
            raise

    def _hear(self, row: Callable[[Mapping[str, Any]], None]) -> Ending:
        assert self._process.stdout is not None
        ending: Ending | None = None
        for line in self._process.stdout:
            message = json.loads(line)
            if "row" in message:
                row(message["row"])
            elif "ending" in message:
                ending = Ending(**message["ending"])
            else:
                if ending is None:
                    raise TrialDied(_in_words(message["exit"]))
                return ending
        raise TrialDied(self._why())

    def _why(self) -> str:
        """The last line that the server left."""
        self._complaints.seek(0)
        lines = self._complaints.read().strip().splitlines()
        return f"the process that starts trials is gone: {lines[-1] if lines else 'it said nothing'}"

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise TrialDied(self._why()) from None

    def close(self) -> None:
        """End it, and a trial that is still going on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _in_words(code: int) -> str:
    if code == -9:
        return "killed (signal 9); when nobody did it, the machine ran out of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with {code}"
