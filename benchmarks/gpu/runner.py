"""Parts of a benchmark one after the other, each in a process of its own that is killed at its limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.gpu.worker import BROKEN, Options

LOG = "gpu.log"  # of all that parts with a failure said
LOGGED = 50_000  # bytes of each, the last ones
LINES = 8  # last ones of what a part said, where it failed
AGAIN = (
    10.0  # seconds without which no process is started to go on behind an attempt that ended the one before
)


@dataclass(frozen=True)
class Part:
    """What is measured in one process."""

    name: str
    title: str
    target: str  # module:function
    seconds: float  # that it may take, the start of Python included


@dataclass(frozen=True)
class Result:
    """What became of a part."""

    part: str
    title: str
    seconds: float
    ok: bool
    error: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)


def run_parts(parts: Sequence[Part], options: Options, folder: Path, total: float) -> Iterator[Result]:
    """The parts in turn, all within `total` seconds; what one leaves of its time, the next may use.

    While a part runs its figures are in `folder`, in a file of its own; the output of parts that fail is kept
    there, in gpu.log.
    """
    end = time.monotonic() + total
    for number, part in enumerate(parts):
        later = sum(its.seconds for its in parts[number + 1 :])
        left = end - time.monotonic()
        seconds = min(left, max(part.seconds, left - later))
        if seconds < min(AGAIN, part.seconds):
            yield Result(part.name, part.title, 0.0, False, "not run: no time was left")
        else:
            yield _run(part, options, folder / f"{part.name}.part.jsonl", seconds)


def _run(part: Part, options: Options, file: Path, seconds: float) -> Result:
    """One part; where an attempt ends its process, another goes on behind it."""
    began, errors = time.monotonic(), []
    file.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as said:
        while True:
            left = seconds - (time.monotonic() - began)
            done = tuple(line["attempt"] for line in _lines(file) if "begun" in line)
            code = _process(part, replace(options, seconds=left, done=done), file, said, left)
            if code != 0:
                _keep(said, file.with_name(LOG), part.name)
            lines = _lines(file)
            broken = [name for name in _unfinished(lines) if name not in done]
            why = f"killed after {left:.0f} s" if code is None else _last_lines(said)
            errors += [f"{name}: {why}" for name in broken]
            if code is None or not (broken or code == BROKEN):
                break
            if seconds - (time.monotonic() - began) < AGAIN:
                errors.append("what follows was not begun: no time was left")
                break
    failed = [f"{line['attempt']}: {line['error']}" for line in lines if line.get("error")]
    if code != 0 and not failed and not errors:
        errors.append(why)
    file.unlink(missing_ok=True)
    return Result(
        part.name,
        part.title,
        round(time.monotonic() - began, 1),
        not (failed or errors),
        "\n".join(failed + errors),
        [line for line in lines if "table" in line],
    )


def _process(part: Part, options: Options, file: Path, said: IO[bytes], seconds: float) -> int | None:
    """The exit code, or None if it was killed at its limit."""
    said.seek(0)
    said.truncate()
    command = [sys.executable, "-m", "benchmarks.gpu.worker", part.target, str(file)]
    child = subprocess.Popen(
        [*command, json.dumps(asdict(options))],
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The process, those it started, and what they left of its group."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(child.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # a process that waits for a device may not end at all
        child.wait(5)


def _lines(file: Path) -> list[dict[str, Any]]:
    """What a part has written; a last line may have been cut."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def _unfinished(lines: Sequence[dict[str, Any]]) -> list[str]:
    ended = {line["attempt"] for line in lines if "error" in line}
    return [line["attempt"] for line in lines if "begun" in line and line["attempt"] not in ended]


def _keep(said: IO[bytes], log: Path, name: str) -> None:
    said.seek(max(0, said.seek(0, os.SEEK_END) - LOGGED))
    with log.open("ab") as file:
        file.write(f"---- {name}\n".encode() + said.read() + b"\n")


def _last_lines(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    timeouts = [number for number, line in enumerate(lines) if line.startswith("Timeout (")]
    if timeouts:  # faulthandler names the innermost call first
        return "\n".join(lines[timeouts[-1] :][:LINES])
    return "\n".join(lines[-LINES:]) or "ended without a word"
