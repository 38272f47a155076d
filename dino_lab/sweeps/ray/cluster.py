"""The Ray cluster of a sweep: one of this machine alone, which nobody else can reach, or an existing one."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from dino_lab.errors import UserError
from dino_lab.sweeps.processes.launch import ServerProcess, fork_server, start_server
from dino_lab.sweeps.ray.capacity import Machine, cores
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
}


class ClusterLost(Exception):
    """Ray's own processes ended while trials ran."""


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
        self._processes: list[psutil.Process] = []  # without which Ray does not work
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
        self._processes = ray_processes(address)

    def wait(self) -> None:
        """Return when the cluster can be used."""
        assert self._connected is not None
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._connected.result()
        for number, handler in handlers.items():  # Ray may have put its own there
            signal.signal(number, handler)

    def check(self) -> None:
        """ClusterLost if one of Ray's own processes has ended."""
        ended = [process for process in self._processes if not lives(process)]
        if ended:
            raise ClusterLost(
                f"Ray's process {ended[0].pid} ended, and the trials with it; the same command continues "
                "them from their last checkpoints"
            )

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
        except ClusterLost:  # an orderly end would wait for the processes that are gone
            atexit.unregister(ray.shutdown)
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


def _set_environment(values: dict[str, str]) -> None:
    """Set variables for Ray here and in every process that it starts; those import this very package."""
    os.environ.update(values)
    source = str(Path(__file__).parents[3])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
