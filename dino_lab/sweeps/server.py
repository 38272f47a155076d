"""A process that has everything imported, and gives each trial a clean copy of itself.

It reads one task a line, forks, and lets the copy train: the imports are paid once, and nothing that a trial
does to its process reaches the next. A line `stop` asks the trial to save and end. When whoever started the
server is gone, however that happened, the pipe closes, and server and trial end at once. On the standard
output, one JSON a line: `row`, `ending`, and `exit` once the copy is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict
from types import FrameType
from typing import Any

from dino_lab.sweeps.trial import Task, prepare, run_trial

STOP = "stop"
LOG = "train.log"  # of a run folder: what its trial printed


def main() -> None:
    """Serve until the standard input closes."""
    out = os.dup(1)
    os.dup2(2, 1)  # what is printed is no message
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    import dino_lab.training.experiment  # noqa: F401 - what every trial needs

    lines = _Lines(0)
    while (line := lines.next()) is not None:
        if line != STOP:  # a trial that ended just before it was asked to
            _serve(line, lines, out)


def _serve(line: str, lines: _Lines, out: int) -> None:
    task = Task.of(line)
    try:
        os.chdir(task.place)
        spec = prepare(task)
    except Exception as error:
        _say(out, "ending", {"status": "failed", "reason": str(error)})
        return _say(out, "exit", 0)
    alive, held = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        _train(task, spec, out)
    os.close(held)
    while True:
        if not lines.waiting:
            ready, _, _ = select.select([lines.file, alive], [], [])
            if alive in ready:
                break
        line_ = lines.next()
        if line_ is None:
            os.kill(child, signal.SIGKILL)
        elif line_ == STOP:
            os.kill(child, signal.SIGTERM)
    os.close(alive)
    _, status = os.waitpid(child, 0)
    _say(out, "exit", os.waitstatus_to_exitcode(status))


def _train(task: Task, spec: Any, out: int) -> None:
    """The life of a copy; it never returns."""
    code = 1
    try:
        asked: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            asked.append(number)

        signal.signal(signal.SIGTERM, ask)
        task.folder.mkdir(parents=True, exist_ok=True)
        log = os.open(task.folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for old, new in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(old, new)
        ending = run_trial(task, spec, lambda row: _say(out, "row", row), weak=lambda: bool(asked))
        _say(out, "ending", asdict(ending))
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(out: int, kind: str, content: Mapping[str, Any] | int) -> None:
    try:
        os.write(out, json.dumps({kind: content}).encode() + b"\n")
    except BrokenPipeError:
        os._exit(1)  # nobody is there to listen


class _Lines:
    """Lines of a file descriptor; None at its end."""

    def __init__(self, file: int) -> None:
        self.file, self._rest, self._ready = file, b"", list[str]()

    @property
    def waiting(self) -> bool:
        """Whether a line was read already."""
        return bool(self._ready)

    def next(self) -> str | None:
        while not self._ready:
            more = os.read(self.file, 1 << 16)
            if not more:
                return None
            *whole, self._rest = (self._rest + more).split(b"\n")
            self._ready += [line.decode() for line in whole]
        return self._ready.pop(0)


if __name__ == "__main__":
    main()
