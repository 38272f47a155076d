"""Several processes of one run on this machine, for tests."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as distributed

T = TypeVar("T")


class RankFailed(Exception):
    """What a process raised, as one line."""


def on_processes(count: int, work: Callable[[], T], *, seconds: float = 120.0) -> list[T]:
    """What `work` returns on each of `count` processes (gloo, one thread each), forked from this one.

    A RankFailed where one of them raises, or all take longer than `seconds`. They meet in a file, so no port
    has to be free.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=_rank, args=(rank, count, folder, work, seconds)) for rank in range(count)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # since Python 3.12, of a fork beside threads
            for process in ranks:
                process.start()
        try:
            _wait(ranks, Path(folder), seconds)
            return [pickle.loads(Path(folder, f"{rank}.result").read_bytes()) for rank in range(count)]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _rank(rank: int, count: int, folder: str, work: Callable[[], Any], seconds: float) -> None:
    torch.set_num_threads(1)  # more would wait for threads that a forked process does not have
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=seconds),
        )
        result = work()
        distributed.barrier()  # none closes its connections while another reads from them
        distributed.destroy_process_group()
    except BaseException as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        Path(folder, f"{rank}.error").write_text(line, encoding="utf-8")
        os._exit(1)
    Path(folder, f"{rank}.result").write_bytes(pickle.dumps(result))


def _wait(ranks: Sequence[BaseProcess], folder: Path, seconds: float) -> None:
    """Until all have ended, or one has failed: the others would wait for it."""
    end = time.monotonic() + seconds
    while alive := [process for process in ranks if process.is_alive()]:
        if time.monotonic() > end:
            raise RankFailed(f"no end after {seconds:g} s: processes may wait for each other")
        if any(process.exitcode for process in ranks):
            break
        alive[0].join(0.02)
    # The first is the cause: when it ends, others lose their connection to it.
    for file in sorted(folder.glob("*.error"), key=lambda file: file.stat().st_mtime_ns):
        raise RankFailed(file.read_text(encoding="utf-8"))
    for process in ranks:
        if process.exitcode:
            raise RankFailed(f"exit code {process.exitcode}")
