"""A run on two processes: its speed, its start, and its end when one of them is killed.

`speed` compares two processes of one thread with one process of two threads, in turns. `start` compares the
time from the command to the first row. `killed` kills a process of a run at random, and compares the weights
at the end with those of a run that was left alone.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import psutil
import torch

from benchmarks.report import section, spread, table
from dino_lab.distributed.launch import Stop, launch
from dino_lab.distributed.world import World, joined
from dino_lab.registry import registry
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.spec.file import load
from dino_lab.spec.model import Spec
from dino_lab.training.build import build
from dino_lab.training.loop import train

CPU = torch.device("cpu")
QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
STEP = Path(__file__).with_name("step.yaml")
SPEEDS = {"quickstart": (QUICKSTART, 20), "ViT-T/4, 2 + 6 crops, batch 64": (STEP, 5)}  # steps of a round
ROUNDS, WARM = 5, 2
STARTS = 5
KILLED = 20
SMALL = ("data.train_images=960", "train.epochs=4", "train.log_every=1", "evaluators=[]", "backbone.depth=1")


def main() -> str:
    """All three."""
    return section(
        "Several processes", "python -m benchmarks.processes", "\n\n".join(f() for f in PARTS.values())
    )


def speed() -> str:
    """Images a second of both ways, and their ratio round by round."""
    rows = []
    for name, (file, steps) in SPEEDS.items():
        spec = load(file, ["train.epochs=1000", "train.log_every=1000000", "evaluators=[]"]).spec
        one, two = [], []
        for _ in range(ROUNDS):
            one.append(_images_per_second(spec, steps, processes=1, threads=2))
            two.append(_images_per_second(spec, steps, processes=2, threads=1))
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        rows.append([name, spread(one, 0), spread(two, 0), spread(ratios), 0.95])
    return table(["images/s", "1 process, 2 threads", "2 processes, 1 thread", "ratio", "asked"], rows)


def _images_per_second(spec: Spec, steps: int, *, processes: int, threads: int) -> float:
    def work(world: World, stop: Stop) -> float:
        with joined(world, CPU, threads):
            rows = train(build(spec, registry, CPU))
            list(islice(rows, WARM))
            began = time.perf_counter()
            list(islice(rows, steps))
            return steps * spec.train.batch_size / (time.perf_counter() - began)

    found: float = launch(work, processes)
    return found


def start() -> str:
    """Seconds from the command to the first row."""
    one, two = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(STARTS + 1):
            seconds = [_first_row(Path(folder) / f"{i}-{n}", n) for n in (1, 2)]
            if i:  # the first round warms the file cache
                one.append(seconds[0])
                two.append(seconds[1])
    more = [b - a for a, b in zip(one, two, strict=True)]
    row = ["quickstart", spread(one), spread(two), spread(more), 6]
    return table(
        ["seconds to the first row", "`run`", "`run --processes 2`", "more", "asked, at most"], [row]
    )


def _first_row(runs: Path, processes: int) -> float:
    began = time.perf_counter()
    with _command(QUICKSTART, runs, processes, "train.log_every=1", "evaluators=[]") as process:
        _wait(lambda: _rows(runs) > 0)
        seconds = time.perf_counter() - began
        process.kill()
    return seconds


def killed() -> str:
    """How many runs ended, and how many of these with the weights of a run that was left alone."""
    choices = random.Random(0)
    ended = equal = 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        began = time.perf_counter()
        with _command(QUICKSTART, whole, 2, *SMALL) as process:
            process.wait()
        longest = time.perf_counter() - began
        for i in range(KILLED):
            runs = Path(folder) / str(i)
            with _command(QUICKSTART, runs, 2, *SMALL) as process:
                _wait(lambda process=process: len(_ranks(process)) == 2 or process.poll() is not None)  # type: ignore[misc]
                time.sleep(choices.uniform(0, longest))
                with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                    choices.choice(_ranks(process)).kill()
                ended += process.wait() == 0
            equal += _same_weights(whole, runs)
    row = [KILLED, ended, equal]
    return table(["killed at random, once each", "ended with 0", "weights bit for bit"], [row])


def _command(file: Path, runs: Path, processes: int, *settings: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "dino_lab", "run", str(file), "--runs", str(runs), "--device", "cpu"]
    words += ["--threads", str(max(1, len(os.sched_getaffinity(0)) // processes)), "--checkpoint-every", "0"]
    words += ["--processes", str(processes)] if processes > 1 else []
    words += [word for setting in settings for word in ("--set", setting)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(process.pid).children()
    return []


def _rows(runs: Path) -> int:
    """Lines of the rows of the only run there, without that of step 0."""
    files = list(runs.rglob("rows.jsonl"))
    return max(0, files[0].read_text().count("\n") - 1) if files else 0


def _wait(until: Callable[[], bool]) -> None:
    while not until():
        time.sleep(0.002)


def _same_weights(one: Path, other: Path) -> bool:
    states = []
    for runs in (one, other):
        found = load_checkpoint(next(runs.rglob("last.pt")).parent, None, CPU)
        assert found is not None
        states.append(found.state["student"])
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


PARTS = {"speed": speed, "start": start, "killed": killed}

if __name__ == "__main__":
    print(PARTS[sys.argv[1]]() if len(sys.argv) > 1 else main())
