"""The processes of a run on this machine, started by torch.distributed's own launcher.

They meet through a file: no port is opened that another machine could reach. When one is killed, all start
again, as often as is allowed, and go on from the last checkpoint. When the process that started them is
killed, they are, too.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dino_lab.distributed.control import is_known, portable
from dino_lab.distributed.world import World
from dino_lab.errors import FailedElsewhere

Stop = Callable[[], bool | str]  # whether to stop now, or as what
Work = Callable[[World, Stop], Any]
LOOK = 0.05  # seconds between two looks at the request to stop
PAUSE = 2.0  # seconds in which a process that failed waits for the news that another was killed before
LAST = 30.0  # seconds that the launcher is waited for once all processes were killed
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_NOISY = ("torch.distributed.elastic", "torch.distributed.launcher", "torch.multiprocessing")


class ProcessDied(Exception):
    """A process was killed, more often than the run may be started again."""

    def __init__(self, rank: int, how: str, restarts: int) -> None:
        again = f", after {restarts} restart{'s' if restarts > 1 else ''}" if restarts else ""
        super().__init__(f"process {rank} of the run {how}{again}")


def in_words(code: int) -> str:
    """How a process ended."""
    if code == -signal.SIGKILL:
        return "was killed (signal 9); unless somebody did it, the machine ran out of memory"
    return f"was ended by signal {-code}" if code < 0 else f"ended with {code}"


def launch(
    work: Work,
    processes: int,
    *,
    restarts: int = 0,
    stop: Stop = lambda: False,
    start_method: Literal["fork", "spawn"] = "fork",
) -> Any:
    """Call `work` in so many processes; what it returns in the first of them.

    `work` is given its World, and a function that says whether to stop, and as what: once `stop` does, or
    SIGINT has reached the process. Raises what `work` raised first, or a ProcessDied. Copies of this process
    (`fork`) start at once, and share its memory; it must not have started threads of torch, nor CUDA.
    """
    folder = Path(tempfile.mkdtemp(prefix="dino-lab-run-"))
    place = _Place(folder, os.getpid(), processes, restarts)
    done: Future[dict[int, Any]] = Future()
    thread = threading.Thread(
        target=_elastic, args=(work, place, start_method, done), daemon=True, name="processes"
    )
    try:
        with _quiet(), _environment("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1"):
            thread.start()
            while not done.done():
                with contextlib.suppress(NotYet):
                    done.exception(LOOK)
                if (why := stop()) and not place.stop_file.exists():
                    place.ask(why)
            thread.join()
        return _result(done, place)
    except BaseException:
        place.kill()
        thread.join(LAST)  # the folder tells processes that begin again to end
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Place:
    """Where the processes meet."""

    folder: Path
    parent: int  # process that started them
    processes: int
    restarts: int

    @property
    def stop_file(self) -> Path:
        """Exists once the run should stop, and says as what."""
        return self.folder / "stop"

    def kill(self) -> None:
        """End all that are left, and let none begin again."""
        if not self.error_file.exists():
            self.error_file.write_bytes(pickle.dumps(KeyboardInterrupt()))
        for file in self.folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)

    def ask(self, why: bool | str) -> None:
        """Ask all to stop."""
        whole = self.folder / "asking"
        whole.write_text(why if isinstance(why, str) else "")
        whole.replace(self.stop_file)

    def asks(self) -> bool | str:
        """Whether to stop now, or as what."""
        return self.stop_file.exists() and (self.stop_file.read_text() or True)

    @property
    def error_file(self) -> Path:
        """The pickled error of the process that failed first."""
        return self.folder / "error"


def _elastic(work: Work, place: _Place, start_method: str, done: Future[dict[int, Any]]) -> None:
    """Run the launcher of torch.distributed to its end."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    try:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=place.processes,
            run_id=place.folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint=str(place.folder / "agent"),
            rdzv_configs={"store_type": "file"},
            max_restarts=place.restarts,
            monitor_interval=LOOK,
            start_method=start_method,
            local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=str(place.folder / "logs")),
        )
        done.set_result(elastic_launch(config, _rank)(work, place))
    except BaseException as error:
        done.set_exception(error)


def _result(done: Future[dict[int, Any]], place: _Place) -> Any:
    """What the first process returned, or the error of the one that failed first."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if place.error_file.exists():
        raise pickle.loads(place.error_file.read_bytes())
    try:
        return done.result()[0]
    except ChildFailedError as error:
        rank, failure = min(error.failures.items(), key=lambda item: item[1].timestamp)
        raise ProcessDied(rank, in_words(failure.exitcode), place.restarts) from None


def _rank(work: Work, place: _Place) -> Any:
    """Be one of the processes."""
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    _end_with(place.parent)
    (place.folder / f"{rank}.pid").write_text(str(os.getpid()))
    os.setpgid(0, 0)  # Ctrl-C reaches the process that started this one, which asks all to stop
    if place.error_file.exists():
        return None
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # from the launcher: another process was killed
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if rank > 0:
        log_to(place.folder / f"{rank}.log")
    elif attempt:
        print(f"a process ended early; restart {attempt} of {place.restarts}", file=sys.stderr, flush=True)
    world = World(rank, place.processes, rank, place.processes, f"file://{place.folder}/run-{attempt}")
    try:
        found = work(world, lambda: bool(asked) or place.asks())
        sys.stdout.flush()
        return found
    except SystemExit as leaving:  # of whoever found that nobody reads the output
        return leaving.code
    except FailedElsewhere:
        return None
    except Exception as error:
        if isinstance(error, BrokenPipeError):  # whoever read the output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif not is_known(error):
            time.sleep(PAUSE)
        with contextlib.suppress(FileExistsError), place.error_file.open("xb") as file:
            pickle.dump(portable(error), file)
        if is_known(error):
            return None
        os._exit(1)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when the one that started it ends, where it can (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def log_to(log: Path) -> None:
    """Let what this process prints go to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    os.close(file)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the launcher's own words: what it has to say is said here."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
