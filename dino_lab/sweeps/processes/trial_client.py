"""Client of a trial server: sends tasks, receives rows and endings."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_lab.runs.status import Status
from dino_lab.sweeps.processes.launch import ServerProcess, log_of, start_server
from dino_lab.sweeps.processes.trial import Task
from dino_lab.sweeps.processes.trial_server import STOP
from dino_lab.sweeps.ray.head_node import temporary_folder

# Variables that Ray sets for a worker, and that its trial needs as well.
_OF_WORKER = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "OMP_NUM_THREADS")


class TrialDied(Exception):
    """The process of a trial ended before the trial did."""


@dataclass(frozen=True)
class _Hooks:
    """What is called with the hash of a trial."""

    row: Callable[[str, Mapping[str, Any]], None] = lambda *_: None
    ended: Callable[[str, Status], None] = lambda *_: None
    waiting: Callable[[str], None] = lambda _: None


class TrialClient:
    """Runs trials on the server at `address`; where there is none, on one that ends with this process."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._own: ServerProcess | None = None
        self._connection: socket.socket | None = None

    def run(
        self,
        tasks: Sequence[Task],
        row: Callable[[str, Mapping[str, Any]], None],
        ended: Callable[[str, Status], None],
        waiting: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Run one trial, or a stack, to its end; the hooks are called with the hash of a trial.

        If a hook raises, the trials save and end first. TrialDied if their process ended unexpectedly.
        """
        hooks = _Hooks(row, ended, waiting)
        with self._connected() as connection:
            self._connection = connection
            here = {name: os.environ[name] for name in _OF_WORKER if name in os.environ}
            _send(connection, json.dumps({"tasks": [task.text() for task in tasks], "environment": here}))
            with connection.makefile("r") as lines:
                try:
                    self._receive(lines, len(tasks), hooks)
                except BaseException:
                    with contextlib.suppress(TrialDied, OSError):
                        _send(connection, STOP)
                        self._receive(lines, 0, _Hooks())
                    raise

    def _receive(self, lines: Iterable[str], expected: int, hooks: _Hooks) -> None:
        """Call the hooks until the process is gone; so many endings should have come before."""
        for line in lines:
            message = json.loads(line)
            if "row" in message:
                hooks.row(message["of"], message["row"])
            elif "waiting" in message:
                hooks.waiting(message["of"])
            elif "ending" in message:
                expected -= 1
                hooks.ended(message["of"], Status(**message["ending"]))
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
        """Why the connection closed: the last line in the server's log."""
        assert self._address is not None
        with contextlib.suppress(OSError):
            lines = Path(log_of(self._address)).read_text().strip().splitlines()
            return f"the trial server is gone: {lines[-1] if lines else 'its log is empty'}"
        return "the trial server is gone"

    def abort(self) -> None:
        """Kill the trial that runs, if one does, from another thread: `run` raises TrialDied."""
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End a server that this client has started, and its trial."""
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
        return "killed (signal 9); unless somebody did it, the machine ran out of memory"
    return f"ended by signal {-code}" if code < 0 else f"ended with {code}"
