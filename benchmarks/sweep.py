"""What a sweep costs beside its training: its overhead, its start, and what is done twice after a kill."""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.report import section, table
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import read_status
from dino_lab.sweeps.plan.plan import SWEEPS

BASE = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
TRIALS = 12
SHORT = ["--set", "train.epochs=1", "--set", "data.train_images=1920", "--set", "data.test_images=200"]
SWEEP = f"""\
base: {BASE}
metric: knn.20nn
grid: {{targets.temperature: [0.03, 0.04, 0.05, 0.06]}}
seeds: 3
"""


def main() -> str:
    """Twelve trials of about ten seconds, two at once; then the same with a driver killed half way."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "s.yaml").write_text(SWEEP)
        first_step = {name: _first_step(place, name) for name in ("run", "sweep")}
        began = time.perf_counter()
        _start(place, "whole").wait()
        wall = time.perf_counter() - began
        seconds = [read_status(path).seconds for path in (place / "whole" / BASE.stem).iterdir()]
        twice, equal = _killed(place)
    alone = sum(seconds) / 2
    rows = [
        [
            f"{TRIALS} trials of {statistics.median(seconds):.1f} s, 2 at once: wall over training time",
            f"{wall:.0f} s / {alone:.0f} s = {wall / alone:.2f}",
            "at most 1.25",
        ],
        [
            "start of `sweep` to the first step of the first trial, over that of `run`",
            f"{first_step['sweep']:.1f} s - {first_step['run']:.1f} s = "
            f"{first_step['sweep'] - first_step['run']:.1f} s",
            "at most 8 s",
        ],
        ["driver killed with -9 half way, started again: the same table", equal, "bit for bit"],
        ["steps done twice, of each trial that was running", twice, "one checkpoint interval"],
    ]
    return section("Sweeps", "python -m benchmarks.sweep", table(["figure", "measured", "asked"], rows))


def _start(place: Path, runs: str, verb: str = "sweep", *settings: str) -> subprocess.Popen[bytes]:
    file = place / "s.yaml" if verb == "sweep" else BASE
    command = [verb, str(file), "--runs", str(place / runs), "--checkpoint-every", "2", *SHORT, *settings]
    command += [] if verb == "sweep" else ["--device", "cpu", "--threads", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "dino_lab", *command],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def _steps(place: Path, runs: str) -> list[int]:
    """The last written step of each run."""
    folders = sorted((place / runs / BASE.stem).glob("*"))
    return [max((int(row["step"]) for row in RunFolder(folder).rows()), default=0) for folder in folders]


def _first_step(place: Path, verb: str) -> float:
    """Seconds from the start of the process to the row of the first step."""
    began = time.perf_counter()
    process = _start(place, f"first_{verb}", verb, "--set", "train.log_every=1")
    while max(_steps(place, f"first_{verb}"), default=0) == 0 and process.poll() is None:
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    process.terminate()
    process.wait()
    return seconds


def _killed(place: Path) -> tuple[str, str]:
    """Steps done twice, and whether the table is that of `whole`."""
    process = _start(place, "killed")
    # Half of the trials are begun, and the last of them has written rows to be done again.
    while len(steps := _steps(place, "killed")) <= TRIALS // 2 or not min(steps):
        time.sleep(0.05)
    time.sleep(1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)
    before = {path.name: _last(path) for path in (place / "killed" / BASE.stem).iterdir()}
    saved = {path.parent.name: _saved(path) for path in (place / "killed" / BASE.stem).glob("*/last.pt")}
    _start(place, "killed").wait()
    running = [name for name, step in before.items() if 0 < step < _last(place / "whole" / BASE.stem / name)]
    twice = [before[name] - saved.get(name, 0) for name in running]
    whole, killed = (_table(place, runs) for runs in ("whole", "killed"))
    lost = ", ".join(map(str, twice)) or "no trial was running"
    return lost, "equal" if whole == killed else "NOT equal"


def _last(folder: Path) -> int:
    return max((int(row["step"]) for row in RunFolder(folder).rows()), default=0)


def _saved(file: Path) -> int:
    import torch

    return int(torch.load(file, map_location="cpu", weights_only=True)["step"])


def _table(place: Path, runs: str) -> list[tuple[str, str, str]]:
    """What is said of each arm but for times."""
    (file,) = (place / runs / SWEEPS / "s").glob("*/table.csv")
    rows = csv.DictReader(file.read_text().splitlines())
    return [(row["arm"], row["mean"], row["difference"]) for row in rows]


if __name__ == "__main__":
    print(main())
