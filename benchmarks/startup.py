"""How long the command line takes to answer, as a whole process, warm."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.report import section, spread, table

ROUNDS = 7
SPEC = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
COMMANDS = {"--help": 0.3, "list": 0.5, f"validate {SPEC.relative_to(Path.cwd())}": 3.0}


def main() -> str:
    """Interleaved rounds of the three commands."""
    program = str(Path(sys.executable).with_name("dino-lab"))
    times: dict[str, list[float]] = {command: [] for command in COMMANDS}
    for round_ in range(ROUNDS + 1):
        for command in COMMANDS:
            began = time.perf_counter()
            subprocess.run([program, *command.split()], check=True, capture_output=True)
            if round_:  # the first round warms the file cache
                times[command].append(time.perf_counter() - began)
    rows = [[f"`dino-lab {name}`", spread(times[name]), limit] for name, limit in COMMANDS.items()]
    text = table(["command", "seconds, median (range)", "asked, at most"], rows)
    return section("Start of the command line", "python -m benchmarks.startup", text)


if __name__ == "__main__":
    print(main())
