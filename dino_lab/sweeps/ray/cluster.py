"""The Ray cluster of a sweep: one of this machine alone, which nobody else can reach, or an existing one."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dino_lab.distributed.world import cores
from dino_lab.errors import UserError
from dino_lab.sweeps.processes.launch import ServerProcess, fork_server, start_server
from dino_lab.sweeps.ray.capacity import Machine
from dino_lab.sweeps.ray.head_node import HeadNode, lives, ray_processes
from dino_lab.sweeps.ray.join_cluster import check_address, is_on_loopback_only, machines_at

if TYPE_CHECKING:
    from dino_lab.training.data_cache import Shelf

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a share of a GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # so that a trial that a scheduler ends can save first
    # Ray prints the deaths of workers, which are reported here already, whatever log_to_driver says. It can
    # only be told to leave out repetitions: everything is one.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_ALLOW_REGEX": "",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",
}
# Every socket on the loopback interface: Ray takes a cluster of several machines for given otherwise.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
_OWN = {
    **_LOOPBACK,
    "RAY_AUTH_MODE": "token",
    "RAY_prestart_worker_first_driver": "0",  # Tune starts workers of its own
    # With little memory left Ray would kill its workers, which hold none: trials are other processes.
    "RAY_memory_monitor_refresh_ms": "0",
}


STOPPED = 20  # looks in a row, of half a second, at a stopped process of Ray until the cluster is given up


class ClusterLost(Exception):
    """Ray's own processes ended while trials ran."""


class Guard:
    """Looks at the processes without which Ray waits for ever."""

    def __init__(self, processes: Sequence[tuple[str, psutil.Process]]) -> None:
        self._processes, self._looks = processes, dict.fromkeys([name for name, _ in processes], 0)

    def check(self) -> None:
        """ClusterLost if one of the processes has ended, or stays stopped (SIGSTOP)."""
        for name, process in self._processes:
            what = "" if lives(process) else "ended"
            with contextlib.suppress(psutil.NoSuchProcess):
                stopped = process.status() == psutil.STATUS_STOPPED
                self._looks[name] = self._looks[name] + 1 if stopped else 0
                if self._looks[name] >= STOPPED:
                    what = "was stopped"
            if what:
                raise ClusterLost(
                    f"Ray's {name} (process {process.pid}) {what}, and what ran there with it; the same "
                    "command continues from the last checkpoints"
                )


class Cluster:
    """A cluster that starts in the background, or one that exists already, and this machine's trial server.

    On a cluster that was joined, `server` is None, and every worker starts its own; `machines` are those of
    such a cluster.
    """

    def __init__(self, address: str | None) -> None:
        _set_environment(_ENVIRONMENT)
        self.server: str | None = None
        self.machines: list[Machine] = []
        self._address = address
        self._head: HeadNode | None = None
        self._process: ServerProcess | None = None
        self._connected: Future[None] | None = None
        self._guard = Guard([])
        self._background = ThreadPoolExecutor(1)
        if address is not None:
            check_address(address)
            if is_on_loopback_only(address):
                _set_environment(_LOOPBACK)  # or Ray would look for it at the address that others reach
            self.machines = machines_at(address)
        else:
            _set_environment(_OWN)
            os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
            self._head = HeadNode(cores())

    def prepare(self, plugins: Sequence[Path], shelf: Shelf | None) -> None:
        """Begin to connect.

        Trials on this machine start as copies of this process, with its imported plugins and the data on the
        shelf; without a shelf, as copies of another process, which has not initialised CUDA.
        """
        if self._head is not None:
            folder = Path(self._head.folder) / "trials"
            folder.mkdir()
            self.server = str(folder / "server")
            # Before there is a second thread.
            self._process = fork_server(self.server, plugins, shelf) if shelf else start_server(self.server)
        self._connected = self._background.submit(self._connect)

    def _connect(self) -> None:
        import ray

        address = self._head.address() if self._head is not None else self._address
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except ConnectionError as error:
            raise UserError(f"--address {address}: {' '.join(str(error).split())}") from None
        import ray.tune

        assert address is not None
        self._guard = Guard(ray_processes(address))

    def wait(self) -> None:
        """Return when the cluster can be used."""
        assert self._connected is not None
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._connected.result()
        for number, handler in handlers.items():  # Ray may have put its own there
            signal.signal(number, handler)

    def check(self) -> None:
        """ClusterLost if one of Ray's own processes has ended, or stays stopped."""
        self._guard.check()

    def close(self) -> None:
        """End the trial server, and a cluster that this object started, with everything that runs there."""
        if self._process is not None:
            self._process.close()
        if self._connected is not None and self._connected.exception() is None:
            self._disconnect()
        self._background.shutdown()
        if self._head is not None:
            self._head.close()

    def _disconnect(self) -> None:
        import ray

        try:
            self.check()
        except ClusterLost:
            # What Ray does at the end of a process would wait for ever for those that are gone; what is
            # registered last is called first.
            atexit.register(_end_at_once)
        else:
            ray.shutdown()


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """A cluster of this machine alone, or the one at `address`; UserError if none answers there."""
    one = Cluster(address)
    try:
        yield one
    finally:
        one.close()


def _end_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _set_environment(values: dict[str, str]) -> None:
    """Set variables for Ray here and in every process that it starts; those import this very package."""
    os.environ.update(values)
    source = str(Path(__file__).parents[3])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
