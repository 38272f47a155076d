"""Two ways to start a trial server: as a copy of this process, or as a new process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dino_lab.training.data_cache import Shelf

_PATIENCE = 10.0  # seconds that it may take to end
_WAITING = 64  # connections that may wait for the server


class ServerProcess:
    """A trial server; it ends with the process that started it, or when it is closed."""

    def __init__(self, lifeline: int, over: Callable[[], bool], kill: Callable[[], None]) -> None:
        self._lifeline, self._over, self._kill = lifeline, over, kill

    def close(self) -> None:
        """End it with its trials."""
        os.close(self._lifeline)
        end = time.monotonic() + _PATIENCE
        while not self._over():
            if time.monotonic() > end:
                return self._kill()
            time.sleep(0.01)


def log_of(address: str) -> str:
    """The file that holds what the server at `address` prints."""
    return f"{address}.log"


def fork_server(address: str, plugins: Sequence[Path], shelf: Shelf) -> ServerProcess:
    """A copy of this process, with its imported plugins and the data on its shelf.

    This process must have one thread and must not have initialised CUDA: a copy could not use it.
    """
    from dino_lab.sweeps.processes import trial
    from dino_lab.sweeps.processes.trial_server import serve

    listener = _listener(address)
    stdin, lifeline = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()  # Ctrl-C reaches trials as a stop, from the process that started the sweep
            os.close(lifeline)
            log = os.open(log_of(address), os.O_WRONLY | os.O_CREAT, 0o600)
            for old, new in ((stdin, 0), (log, 1), (log, 2)):
                os.dup2(old, new)
            trial.loaded.update(str(file.resolve()) for file in plugins)
            serve(listener, shelf)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(0)
    listener.close()
    os.close(stdin)
    return ServerProcess(lifeline, lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, lambda: os.kill(pid, 9))


def start_server(address: str) -> ServerProcess:
    """A new process, which imports everything itself and removes the folder of its address when it ends."""
    listener = _listener(address)
    stdin, lifeline = os.pipe()
    with open(log_of(address), "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dino_lab.sweeps.processes.trial_server", str(listener.fileno())],
            stdin=stdin,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            # Asking whether there is a GPU must not initialise CUDA in a process that is going to fork.
            env=os.environ | {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            start_new_session=True,
        )
    listener.close()
    os.close(stdin)
    return ServerProcess(lifeline, lambda: process.poll() is not None, process.kill)


def _listener(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(_WAITING)
    return listener
