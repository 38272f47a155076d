"""The Ray cluster of a sweep: of this machine alone, where nobody else can reach it, or one that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from dino_lab.errors import UserError
from dino_lab.sweeps.processes.start import Process, fork_server, start_server
from dino_lab.sweeps.ray.head import Head
from dino_lab.sweeps.ray.join import is_on_loopback_only, machines_at, refuse_what_does_not_answer
from dino_lab.sweeps.ray.machine import Machine, cores

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
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a trial that a scheduler ends may save first
    # Ray prints the deaths of workers, which the watcher is told of, whatever log_to_driver says. What it
    # leaves out as a repetition is the one thing that it lets us say.
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


class Cluster:
    """A cluster that starts in the background, or one that was there, and this machine's server.

    On a cluster that was joined, `server` is None, and every worker starts its own; `machines` are those of
    such a cluster.
    """

    def __init__(self, address: str | None) -> None:
        _set_environment(_ENVIRONMENT)
        self.server: str | None = None
        self.machines: list[Machine] = []
        self._address = address
        self._head: Head | None = None
        self._process: Process | None = None
        self._there: Future[None] | None = None
        self._aside = ThreadPoolExecutor(1)
        if address is not None:
            refuse_what_does_not_answer(address)
            if is_on_loopback_only(address):
                _set_environment(_LOOPBACK)  # or Ray would look for it at the address that others reach
            self.machines = machines_at(address)
        else:
            _set_environment(_OWN)
            os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
            self._head = Head(cores())

    def prepare(self, plugins: Sequence[Path], shelf: Shelf | None) -> None:
        """Begin to connect.

        Trials on this machine start as copies of this process, which has imported the plugins, with what is
        on the shelf; without a shelf, as copies of another process, which has not begun CUDA.
        """
        if self._head is not None:
            folder = Path(self._head.folder) / "trials"
            folder.mkdir()
            self.server = str(folder / "server")
            # Before there is a second thread.
            self._process = fork_server(self.server, plugins, shelf) if shelf else start_server(self.server)
        self._there = self._aside.submit(self._connect)

    def _connect(self) -> None:
        import ray

        address = self._head.address() if self._head is not None else self._address
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except ConnectionError as error:
            raise UserError(f"--address {address}: {' '.join(str(error).split())}") from None
        import ray.tune

    def wait(self) -> None:
        """Until it can be used."""
        assert self._there is not None
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self._there.result()
        for number, handler in handlers.items():  # Ray may have put its own there
            signal.signal(number, handler)

    def close(self) -> None:
        """End the server, and the cluster if it is ours, with all that runs there."""
        if self._process is not None:
            self._process.close()
        if self._there is not None and self._there.exception() is None:
            import ray

            ray.shutdown()
        self._aside.shutdown()
        if self._head is not None:
            self._head.close()


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Cluster]:
    """A cluster of our own, or the one at `address`, which has to answer."""
    one = Cluster(address)
    try:
        yield one
    finally:
        one.close()


def _set_environment(values: dict[str, str]) -> None:
    """For Ray here and in every process that it starts, which import this package, wherever it lies."""
    os.environ.update(values)
    source = str(Path(__file__).parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
