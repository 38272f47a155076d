"""Every method of experiments/methods on the embedded shapes: its k-NN accuracy, and what the diagnosis says.

Three seeds each, two runs at a time with one thread each. Finished runs are kept in runs/methods and not
repeated, so this may be stopped and called again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import section, spread, table
from dino_lab.runs.folder import folder_of
from dino_lab.runs.status import read_status
from dino_lab.spec.difference import difference
from dino_lab.spec.file import load

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "experiments" / "methods"
RUNS = ROOT / "runs" / "methods"
SEEDS = 3
EPOCHS = 3
SCORE = "knn.20nn"
PAGE = ROOT / "docs" / "methods.md"
HEAD = """# Methods

Every method is a short file in `experiments/methods/` that changes another one; its comments say what differs
from the paper. This page is written by `python -m benchmarks.methods`.
"""
READING = """\
Variants that collapse in the paper do not always collapse here, because batch norm in the head centres and
scales the outputs. Without it, at this size, DINO collapses to uniform in spite of its centre; so only
`dino_without_centring` has a head without batch norm. Features may have improved before a target became
uniform, so a collapsed run can score above the untrained network."""
# Methods that learn from the DINO run of their seed, and what of its teacher: `output` of teacher `frozen`.
DISTILLED = {"distillation": "head", "dense_distillation": "features"}
# What the papers say becomes of it; of all others they say that they learn.
COLLAPSES = {
    "dino_without_centring": "one output",
    "dino_without_sharpening": "uniform",
    "dino_student_copy": "uniform or one output",
    "dino_previous_iteration": "uniform or one output",
}


def result(method: str, seed: int, settings: Sequence[str] = ()) -> dict[str, Any]:
    """Train, unless that is done, and give the run's status, with its folder."""
    options = [f"seed={seed}", f"train.epochs={EPOCHS}", *settings]
    file = METHODS / f"{method}.yaml"
    spec = load(file, options).spec
    folder = folder_of(RUNS, spec).path
    program = str(Path(sys.executable).with_name("dino-lab"))
    words = [word for option in options for word in ("--set", option)]
    command = [program, "run", str(file), "--runs", str(RUNS), "--threads", "1", "--device", "cpu", *words]
    if read_status(folder).state != "finished":
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return asdict(read_status(folder)) | {"folder": str(folder)}


def line(method: str, results: Sequence[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    before, after = ([r[f"scores_{when}"][SCORE] for r in results] for when in ("before", "after"))
    verdicts = [r["verdict"].removeprefix("collapsed to ") for r in results]
    said = ", ".join(f"{verdicts.count(v)} x {v}" for v in dict.fromkeys(verdicts))
    more = [b > a for a, b in zip(before, after, strict=True)]
    return [
        f"`{method}`",
        spread(before, 3),
        spread(after, 3),
        f"{sum(more)} of {len(more)}",
        said,
        COLLAPSES.get(method, "learning"),
    ]


def changes(method: str) -> str:
    """What differs from DINO, as a table."""
    dino, other = (load(METHODS / f"{name}.yaml").spec for name in ("dino", method))
    rows = [
        [f"`{cell}`" for cell in (change.key, change.old, change.new)] for change in difference(dino, other)
    ]
    return f"### {method}\n\n" + table(["key", "dino", method], rows)


def main() -> str:
    """All methods; a distilled student learns from the DINO run of its seed."""
    methods = sorted(path.stem for path in METHODS.glob("*.yaml") if path.stem not in DISTILLED)
    with ThreadPoolExecutor(2) as pool:
        jobs = {(m, seed): pool.submit(result, m, seed) for seed in range(SEEDS) for m in methods}
        results = {job: future.result() for job, future in jobs.items()}
        for seed in range(SEEDS):
            for method, output in DISTILLED.items():
                teacher = f"teacher.run={{path: {results['dino', seed]['folder']}, output: {output}}}"
                jobs[method, seed] = pool.submit(result, method, seed, [teacher])
        results = {job: future.result() for job, future in jobs.items()}
    methods += DISTILLED
    lines = [line(m, [results[m, s] for s in range(SEEDS)]) for m in methods]
    header = ["method", "20-NN, untrained", "20-NN, trained", "rose", "diagnosis at the end", "expected"]
    text = table(header, lines)
    pixels = results["dino", 0]["floors"][SCORE]["raw pixels"]
    text += (
        f"\n\nMedian (range) over {SEEDS} seeds; {EPOCHS} epochs of 4,000 images. Raw pixels score "
        f"{pixels:.3f}.\n\n{READING}"
    )
    measured = section("On the embedded shapes", "python -m benchmarks.methods", text)
    differences = [changes(m) for m in methods if m != "dino"]
    return "\n".join([HEAD, measured, "## What each changes\n", "\n\n".join(differences)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(main(), encoding="utf-8")
