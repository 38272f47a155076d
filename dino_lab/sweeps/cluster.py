"""The Ray cluster of a sweep: of this machine alone, where nobody else can reach it, or one that is there."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from dino_lab.errors import UserError
from dino_lab.sweeps import worker
from dino_lab.sweeps.machine import Machine
from dino_lab.sweeps.start_server import Process, fork_server, start_server
from dino_lab.training.shelf import Shelf

_PREFIX = "dl-"  # of Ray's temporary folder; a socket's whole path may have 107 bytes, so /tmp and short
_STORE = 100 << 20  # bytes of shared memory; nothing but numbers passes through it
_ANSWER = 5.0  # seconds in which a cluster has to answer
_SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray prints the deaths of workers, which the watcher is told of, whatever log_to_driver says; only what
    # it would call a repetition is left out, by this.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_ALLOW_REGEX": "",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "(?s).*",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a share of a GPU sees none
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # a trial that a scheduler ends may save first
}
# What Tune sets for its workers; one that was started with the same need not be started again.
_WORKERS = {"PL_DISABLE_FORK": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
# Every socket on the loopback interface: Ray takes a cluster of several machines for given otherwise.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}


@dataclass(frozen=True)
class Cluster:
    """A cluster that is perhaps not there yet."""

    wait: Callable[[], None]
    server: str | None  # where that of this machine listens; None on a cluster that was joined


@contextlib.contextmanager
def cluster(machine: Machine, address: str | None, at_once: int, shelf: Shelf | None) -> Iterator[Cluster]:
    """Start a cluster, or join the one at `address`, while the block goes on.

    The trials of a cluster of our own start as copies of this process, with what is on its shelf; without a
    shelf, as copies of another, which has not begun CUDA.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.update(_SILENT)
    # Workers import this package, wherever it lies.
    source = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
    temporary: str | None = None
    server: Process | None = None
    listens: str | None = None
    where: dict[str, Any] = {"address": address}
    if address is None:
        os.environ.update(_LOOPBACK)
        os.environ.setdefault("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        _remove_left_over()
        temporary = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir="/tmp")
        listens = f"{temporary}/trials"
        # Before there is a second thread.
        server = start_server(listens) if shelf is None else fork_server(listens, shelf)
        where = {
            "address": "local",
            "num_cpus": machine.cpus,
            "num_gpus": machine.gpus,
            "include_dashboard": False,
            "object_store_memory": _STORE,
            "_temp_dir": temporary,
        }
    else:
        _refuse_what_does_not_answer(address)
    with ThreadPoolExecutor(1) as aside:
        started = aside.submit(_start, where, at_once if server else 0)

        def wait() -> None:
            started.result()
            for number, handler in handlers.items():  # Ray may have put its own there
                signal.signal(number, handler)

        try:
            yield Cluster(wait, listens)
        finally:
            if server is not None:
                server.close()
            started.exception()
            _end()
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


def _start(where: dict[str, Any], warm: int) -> None:
    import ray
    import ray.tune

    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.CRITICAL)
    except ConnectionError as error:
        raise UserError(f"--address {where['address']}: {' '.join(str(error).split())}") from None
    for _ in range(warm):
        ray.remote(runtime_env={"env_vars": _WORKERS})(worker.warm_up).remote()


def _end() -> None:
    import ray

    ray.shutdown()


def _remove_left_over() -> None:
    """Temporary folders of sweeps that were killed before they could remove them."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and folder.stat().st_uid == os.getuid() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_what_does_not_answer(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise UserError(f"--address {address}: should be HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER).close()
    except OSError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there ({error})") from None
