"""The quickstart as a user runs it: seconds, and 20-NN before, after, and of raw pixels on the same split."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import section, spread, table
from dino_lab.runs.status import read_status

SPEC = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
SEEDS = 3


def one_run(settings: list[str]) -> tuple[float, float, float, float]:
    """Seconds of the whole process, and 20-NN before, after, and of raw pixels."""
    program = str(Path(sys.executable).with_name("dino-lab"))
    with tempfile.TemporaryDirectory() as runs:
        options = [word for setting in settings for word in ("--set", setting)]
        began = time.perf_counter()
        subprocess.run(
            [program, "run", SPEC, "--runs", runs, "--device", "cpu", *options],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - began
        status = read_status(next(Path(runs).rglob("status.json")).parent)
    name = "knn.20nn"
    raw = status.floors[name]["raw pixels"]
    return seconds, status.scores_before[name], status.scores_after[name], raw


def main() -> str:
    """Three seeds of the spec; the data stays the same."""
    results = [one_run([f"seed={seed}"]) for seed in range(SEEDS)]
    seconds, before, after, (raw, *_) = zip(*results, strict=True)
    over_untrained = [b / a for a, b in zip(before, after, strict=True)]
    rows = [
        ["seconds, the whole process", spread(seconds, 0), "at most 180"],
        ["20-NN, untrained", spread(before, 3), ""],
        ["20-NN, raw pixels less their mean", f"{raw:.3f}", ""],
        ["20-NN, trained", spread(after, 3), ""],
        ["trained over untrained", spread(over_untrained), "at least 2"],
        ["trained over raw pixels", spread([b / raw for b in after]), "at least 1.5"],
    ]
    text = table(["figure", f"median (range) over {SEEDS} seeds", "asked"], rows)
    return section("Quickstart", "python -m benchmarks.quickstart", text)


if __name__ == "__main__":
    print(main())
