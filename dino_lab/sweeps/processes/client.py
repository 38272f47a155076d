"""The other end of a server: gives it a task, hears of its rows."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dino_lab.runs.status import Ending
from dino_lab.sweeps.processes.server import STOP
from dino_lab.sweeps.processes.start import Process, log_of, start_server
from dino_lab.sweeps.processes.trial import Task
from dino_lab.sweeps.ray.head import temporary_folder

_OF_WORKER = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS")  # what Ray says to a worker


class TrialDied(Exception):
    """The process of a trial ended without a word."""


class Server:
    """The server at `address`; one of our own where there is none, which ends with this process."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._own: Process | None = None

    def run(
        self,
        tasks: Sequence[Task],
        row: Callable[[str, Mapping[str, Any]], None],
        ended: Callable[[str, Ending], None],
    ) -> None:
        """One trial, or a pack; `row` and `ended` are told of which, by its hash.

        If one of them raises, the trials save and end first.
        """
        with self._connected() as connection:
            here = {name: os.environ[name] for name in _OF_WORKER if name in os.environ}
            _send(connection, json.dumps({"tasks": [task.text() for task in tasks], "environment": here}))
            lines = connection.makefile("r")
            try:
                self._hear(lines, len(tasks), row, ended)
            except BaseException:
                with contextlib.suppress(TrialDied, OSError):
                    _send(connection, STOP)
                    self._hear(lines, 0, lambda *_: None, lambda *_: None)
                raise

    def _hear(
        self,
        lines: Any,
        expected: int,
        row: Callable[[str, Mapping[str, Any]], None],
        ended: Callable[[str, Ending], None],
    ) -> None:
        """Until the process is gone; it should have said how so many trials ended."""
        for line in lines:
            message = json.loads(line)
            if "row" in message:
                row(message["of"], message["row"])
            elif "ending" in message:
                expected -= 1
                ended(message["of"], Ending(**message["ending"]))
            else:
                if expected > 0:
                    raise TrialDied(_in_words(message["exit"]))
                return
        raise TrialDied(self._why())

    def _connected(self) -> socket.socket:
        if self._address is not None:
            with contextlib.suppress(OSError):
                return _connect(self._address)
        self._address = f"{temporary_folder()}/server"
        self._own = start_server(self._address)
        return _connect(self._address)

    def _why(self) -> str:
        """The last line that the server left."""
        assert self._address is not None
        with contextlib.suppress(OSError):
            lines = Path(log_of(self._address)).read_text().strip().splitlines()
            return f"the process that starts trials is gone: {lines[-1] if lines else 'it said nothing'}"
        return "the process that starts trials is gone"

    def close(self) -> None:
        """End a server of our own, and a trial that is still going on."""
        if self._own is not None:
            self._own.close()


def _connect(address: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


def _send(connection: socket.socket, text: str) -> None:
    connection.sendall(text.encode() + b"\n")


def _in_words(code: int) -> str:
    if code == -9:
        return "killed (signal 9); when nobody did it, the machine ran out of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with {code}"
