"""One part of the benchmark, in a process of its own: `python -m benchmarks.gpu.worker TARGET FILE OPTIONS`.

TARGET is `module:function`; the function gets a `Work`. Figures are appended to FILE as lines of JSON, and
written out at once, so that whatever ends the process loses none of them.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

FAILED = 1
BROKEN = 75  # the device's context is lost: a new process can go on with what is left
MARGIN = 2.0  # seconds before the end of its time that a part stops by itself
LEAST = 1.0  # seconds that an attempt needs


@dataclass(frozen=True)
class Options:
    """What a part is told."""

    size: str  # toy or full
    device: str  # cpu or cuda
    seconds: float  # until it is killed
    cifar: str | None = None  # a folder with CIFAR-10 as Parquet files
    done: tuple[str, ...] = ()  # attempts that an earlier process of this part has begun


class Work:
    """What a part measures with, and where its figures go."""

    def __init__(self, options: Options, file: Path) -> None:
        self.options, self.failed = options, False
        self.device, self.toy = options.device, options.size == "toy"
        self.on_gpu = options.device == "cuda"
        self._file, self._end = file, time.monotonic() + options.seconds - MARGIN

    def left(self) -> float:
        """Seconds until the part should have ended."""
        return self._end - time.monotonic()

    def row(self, table: str, **cells: Any) -> None:
        """A row of a table; names of columns with underscores for blanks."""
        self._write({"table": table, "cells": {key.replace("_", " "): value for key, value in cells.items()}})

    def note(self, table: str, text: str) -> None:
        """A sentence under a table."""
        self._write({"table": table, "note": text})

    def asked(self, figure: str, measured: Any, asked: str, met: bool) -> None:
        """A figure of which a value is asked; whether it is met only a GPU tells, at full size."""
        judged = met if self.on_gpu and not self.toy else None
        cells = {"figure": figure, "measured": measured, "asked": asked, "met": judged}
        self._write({"table": ASKED, "cells": cells})

    def attempt(self, name: str, job: Callable[[], object], seconds: float) -> None:
        """Do a job, unless it was begun before; its failure ends nothing but itself.

        One that takes longer than `seconds` ends the process, and so does one that loses the device's
        context; the next process goes on behind it.
        """
        if name in self.options.done:
            return
        seconds = min(seconds, self.left())
        if seconds < LEAST:
            self.failed = True
            self._write({"attempt": name, "error": "not begun: no time was left"})
            return
        self._write({"attempt": name, "begun": seconds})
        faulthandler.dump_traceback_later(seconds, exit=True)
        try:
            job()
        except Exception as error:
            self.failed = True
            traceback.print_exc()
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
            self._write({"attempt": name, "error": said})
        else:
            self._write({"attempt": name, "error": None})
        self._free()  # a device that hangs may hang here, too
        faulthandler.cancel_dump_traceback_later()

    def _free(self) -> None:
        if "torch" not in sys.modules:
            return
        import torch

        gc.collect()
        if self.on_gpu:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:  # an illegal access, say: nothing works any more in this process
                os._exit(BROKEN)

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


ASKED = "Asked"


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and range of values, as a cell of a table."""
    scaled = [scale * value for value in values]
    return {"median": statistics.median(scaled), "low": min(scaled), "high": max(scaled), "n": len(scaled)}


def main(target: str, file: str, options: str) -> int:
    """Run the part; the exit code says whether all of it went well."""
    told = json.loads(options)
    work = Work(Options(**told | {"done": tuple(told["done"])}), Path(file))
    module, _, function = target.partition(":")
    getattr(import_module(module), function)(work)
    return FAILED if work.failed else 0


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # whatever threads and processes of others still wait for
