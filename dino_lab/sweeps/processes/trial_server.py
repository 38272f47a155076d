"""A process that has everything imported and gives each trial a clean copy of itself.

It listens on a Unix socket. One connection is one trial, or a stack: a line with the tasks and with the
environment of their Ray worker comes in, the server forks, and the copy trains. So imports are paid once,
data that several trials use lies in memory once, and nothing that a trial does to its process reaches the
next. A line `stop` asks the trial to save and end. A connection that closes ends the trial at once. When the
process that started the server ends, for whatever reason, the server's standard input closes, and the server
ends with all its trials. Messages are one JSON a line: `row`, `waiting` and `ending` with the trial they are
`of`, and `exit` once the copy is gone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from dino_lab.sweeps.processes.trial import POLL, Task, prepare, run_trials

if TYPE_CHECKING:
    from dino_lab.protocols import SharedData
    from dino_lab.spec.model import Spec
    from dino_lab.training.data_cache import Shelf

STOP = "stop"
LOG = "train.log"  # in a run's folder: what its trial printed; of a stack, in the folder of the first


def main() -> None:
    """Serve on the socket whose file descriptor the command line names, then remove its folder.

    Ray kills the children of a worker that ends, but not theirs: the server is one of these, so that it ends
    by itself and nothing is left behind.
    """
    child = os.fork()
    if child:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.waitpid(child, 0)
        return
    from dino_lab.training.data_cache import Shelf

    os.dup2(2, 1)  # what is printed is no message
    listener = socket.socket(fileno=int(sys.argv[1]))
    serve(listener, Shelf())
    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)


def serve(listener: socket.socket, shelf: Shelf) -> None:
    """Give each connection its trial, until the standard input closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the exit status of a monitor is not needed
    import dino_lab.training.stacked.trainer  # noqa: F401 - what every trial needs

    gc.freeze()
    while True:
        ready, _, _ = select.select([0, listener.fileno()], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        lines = _LineReader(connection.fileno())
        line = lines.next()
        if line is not None:
            _serve(line, lines, listener, shelf)
        connection.close()


def _serve(line: str, lines: _LineReader, listener: socket.socket, shelf: Shelf) -> None:
    """Prepare what later trials will need as well, and fork a copy for the rest."""
    from dino_lab.registry import registry

    out = lines.file
    message = json.loads(line)
    tasks = [Task.of(text) for text in message["tasks"]]
    try:
        os.chdir(tasks[0].directory)
        specs = [prepare(task) for task in tasks]
        shared = shelf.data(specs[0], registry)
    except Exception as error:
        return _refuse(out, tasks, str(error))
    try:
        child = os.fork()
    except OSError as error:
        return _refuse(out, tasks, f"no process could be started ({error.strerror})")
    if child == 0:
        try:
            listener.close()
            os.setsid()  # Linux shares the processor among sessions first: one for each trial
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(message["environment"])
            _monitor(tasks, specs, shared, lines)
        finally:
            os._exit(0)


def _monitor(
    tasks: Sequence[Task], specs: Sequence[Spec], shared: SharedData | None, lines: _LineReader
) -> None:
    """Start the trial, pass on `stop`, and send the exit code of its process."""
    out = lines.file
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _train(tasks, specs, shared, out)
    os.close(held)
    while True:
        if not lines.waiting:
            ready, _, _ = select.select([0, lines.file, alive], [], [], POLL)
            if not ready:
                if os.path.exists(tasks[0].stop_file):
                    os.kill(child, signal.SIGCONT)  # a stopped trial would not see the file
                continue
            if alive in ready:
                break
            if 0 in ready:
                os.kill(child, signal.SIGKILL)
                break
        line = lines.next()
        if line is None:
            os.kill(child, signal.SIGKILL)
            break
        if line == STOP:
            os.kill(child, signal.SIGTERM)
            os.kill(child, signal.SIGCONT)  # a stopped trial would not hear of it
    _, status = os.waitpid(child, 0)
    _send(out, {"exit": os.waitstatus_to_exitcode(status)})


def _train(tasks: Sequence[Task], specs: Sequence[Spec], shared: SharedData | None, out: int) -> None:
    """Train in this copy, and end it; never returns."""
    code = 1
    try:
        asked: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            asked.append(number)

        signal.signal(signal.SIGTERM, ask)
        gc.enable()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if tasks[0].writes:  # what another process of the trial prints stays in the server's own log
            folder = Path(tasks[0].folder)
            folder.mkdir(parents=True, exist_ok=True)
            log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
        run_trials(
            tasks,
            specs,
            lambda task, row: _send(out, {"of": task.hash, "row": row}),
            lambda task, ending: _send(out, {"of": task.hash, "ending": asdict(ending)}),
            waiting=lambda task: _send(out, {"of": task.hash, "waiting": True}),
            weak=lambda: bool(asked),
            shared=shared,
        )
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _send(out: int, message: Mapping[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the monitor ends this process
        os.write(out, json.dumps(message).encode() + b"\n")


def _refuse(out: int, tasks: Sequence[Task], reason: str) -> None:
    """Send that the tasks failed before they had a process."""
    for task in tasks:
        _send(out, {"of": task.hash, "ending": {"state": "failed", "reason": reason}})
    _send(out, {"exit": 0})


class _LineReader:
    """Lines of a file descriptor; None at its end."""

    def __init__(self, file: int) -> None:
        self.file, self._rest, self._ready = file, b"", list[str]()

    @property
    def waiting(self) -> bool:
        """Whether a line was read already."""
        return bool(self._ready)

    def next(self) -> str | None:
        while not self._ready:
            try:
                more = os.read(self.file, 1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            *whole, self._rest = (self._rest + more).split(b"\n")
            self._ready += [line.decode() for line in whole]
        return self._ready.pop(0)


if __name__ == "__main__":
    main()
