"""The head node of a Ray cluster of this machine alone.

It is a process of its own, so that it starts while the sweep is planned. It writes its address on a line of
the standard output once it is ready, and ends when its standard input closes, for whatever reason. Every
socket is on the loopback interface.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

import psutil

from dino_lab.errors import UserError

_PREFIX = "dl-"  # of the temporary folder; a socket's whole path may have 107 bytes, so /tmp and short
_LOCK = "lock"  # in a temporary folder
_PATIENCE = 10.0  # seconds that a cluster may take to end
_START = 300.0  # seconds that a cluster may take to start
_STORE = 100 << 20  # bytes of shared memory; only numbers pass through it


def main() -> None:
    """Start a cluster; the command line names the folder of its files and its cores."""
    folder, cores = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # anything else that is printed goes to the log
    import ray

    ray.init(
        address="local",
        num_cpus=int(cores),
        include_dashboard=False,
        object_store_memory=_STORE,
        _temp_dir=f"{folder}/r",  # below ours: Ray opens its own to every user of the machine
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )
    os.write(out, ray.get_runtime_context().gcs_address.encode() + b"\n")
    sys.stdin.read()
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def temporary_folder() -> str:
    """A new folder of this process, with a path that is short enough for sockets; those of dead processes go.

    The folder's creator holds the lock of a file in it. A process number would not tell whether the creator
    is alive: containers that share /tmp count their processes apart.
    """
    _remove_left_over()
    hidden = tempfile.mkdtemp(prefix=f".{_PREFIX}", dir="/tmp")
    lock = os.open(f"{hidden}/{_LOCK}", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # held until this process ends
    folder = f"/tmp/{_PREFIX}{os.getpid()}-{hidden.rpartition('-')[2]}"
    os.rename(hidden, folder)
    return folder


def _remove_left_over() -> None:
    """Remove temporary folders whose creators were killed before they could do so."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*"):
        with contextlib.suppress(OSError):  # of another user, held, or being removed
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


class HeadNode:
    """The process of the head node, and its temporary folder."""

    def __init__(self, cores: int) -> None:
        self.folder = temporary_folder()
        self._log = Path(self.folder) / "head.log"
        self._killed = False
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dino_lab.sweeps.ray.head_node", self.folder, str(cores)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C does not reach it
            )

    def address(self) -> str:
        """The cluster's address, HOST:PORT, once it is ready; a UserError if it does not start."""
        out: IO[bytes] | None = self._process.stdout
        assert out is not None
        limit = threading.Timer(_START, self._kill)
        limit.daemon = True
        limit.start()
        line = out.readline().decode().strip()
        limit.cancel()
        if self._killed:
            raise UserError(f"Ray did not start within {_START:g} s; --executor inline does without it")
        if not line:
            lines = self._log.read_text().strip().splitlines()
            raise UserError(f"Ray did not start: {lines[-1] if lines else 'its log is empty'}")
        return line

    def close(self) -> None:
        """Kill the cluster: it holds nothing, and an orderly end takes Ray more than a second."""
        with self._process:  # which waits for it, and closes its pipes
            family = self._kill()
        end = time.monotonic() + _PATIENCE
        while any(map(lives, family)) and time.monotonic() < end:
            time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> list[psutil.Process]:
        """Kill the head node, and the processes that it has started, which are given."""
        self._killed = True
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        return family


def ray_processes(address: str) -> list[tuple[str, psutil.Process]]:
    """Raylet and global control store of the cluster at HOST:PORT, as far as they run on this machine."""
    port, found = int(address.rpartition(":")[2]), []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            name = process.name()
            if (name == "raylet" and f"--gcs-address={address}" in process.cmdline()) or (
                name == "gcs_server" and any(one.laddr[1] == port for one in process.net_connections("tcp"))
            ):
                found.append((name, process))
    return found


def lives(process: psutil.Process) -> bool:
    """Whether a process is running, and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


if __name__ == "__main__":
    main()
