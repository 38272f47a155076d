"""Time and size of the report of a run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import section, spread, table

ROUNDS = 5
SHORT = ["--set", "train.epochs=1"]


def main() -> str:
    """One run of the quickstart's network, reported several times."""
    command = [sys.executable, "-m", "dino_lab"]
    with tempfile.TemporaryDirectory() as place:
        run = [*command, "run", "experiments/quickstart.yaml", "--runs", place, *SHORT]
        subprocess.run(run, check=True, capture_output=True)
        (folder,) = Path(place, "quickstart").iterdir()
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            subprocess.run([*command, "report", str(folder)], check=True, capture_output=True)
            seconds.append(time.perf_counter() - began)
        size = (folder / "report.html").stat().st_size / 1e6
    rows = [
        ["seconds, the whole process", spread(seconds, 1), "under 10"],
        ["MB", f"{size:.1f}", "under 5"],
    ]
    text = table(["`dino-lab report RUN`", "measured", "asked"], rows)
    return section("Report of a run of the quickstart's network", "python -m benchmarks.page", text)


if __name__ == "__main__":
    print(main())
