"""A Ray cluster of this machine alone, in a process of its own, so that it starts while the sweep is planned.

It writes its address on a line of the standard output once it is there, and ends when its standard input
closes, however that happened. Every socket is on the loopback interface.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

import psutil

from dino_lab.errors import UserError

_PREFIX = "dl-"  # of the temporary folder; a socket's whole path may have 107 bytes, so /tmp and short
_PATIENCE = 10.0  # seconds that a cluster may take to end
_STORE = 100 << 20  # bytes of shared memory; nothing but numbers passes through it


def main() -> None:
    """Start a cluster with its files in the folder, and the cores, that the command line names."""
    folder, cores = sys.argv[1:]
    out = os.dup(1)
    os.dup2(2, 1)  # what is printed is no address
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
    """One of this process, with a path that is short enough for sockets; those of dead processes go."""
    _remove_left_over()
    return tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp")


class Head:
    """A process that has started a cluster, and the folder of both."""

    def __init__(self, cores: int) -> None:
        self.folder = temporary_folder()
        self._log = Path(self.folder) / "head.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dino_lab.sweeps.ray.head", self.folder, str(cores)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is not for it
            )

    def address(self) -> str:
        """Where it is, once it is."""
        out: IO[bytes] | None = self._process.stdout
        assert out is not None
        line = out.readline().decode().strip()
        if not line:
            said = self._log.read_text().strip().splitlines()
            raise UserError(f"Ray did not start: {said[-1] if said else 'it said nothing'}")
        return line

    def close(self) -> None:
        """Nothing there is worth an orderly end, which takes Ray more than a second."""
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()
        end = time.monotonic() + _PATIENCE
        while any(map(_lives, family)) and time.monotonic() < end:
            time.sleep(0.01)
        shutil.rmtree(self.folder, ignore_errors=True)


def _lives(process: psutil.Process) -> bool:
    """Still running, and not one that only its parent has to hear of."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def _remove_left_over() -> None:
    """Temporary folders of processes that were killed before they could remove them."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and folder.stat().st_uid == os.getuid() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
