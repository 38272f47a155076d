"""How long the command line takes to answer, as a whole process, warm."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import section, spread, table
from dino_lab.testing import installed

ROUNDS = 7
SPEC = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
COMMANDS = {"--help": 0.3, "list": 0.5, f"validate {SPEC.relative_to(Path.cwd())}": 3.0}
PLUGINS = 5


def main() -> str:
    """Interleaved rounds of the three commands, with plugins installed of which one is broken."""
    program = str(Path(sys.executable).with_name("dino-lab"))
    times: dict[str, list[float]] = {command: [] for command in COMMANDS}
    with tempfile.TemporaryDirectory() as folder, installed(*_plugins(program, Path(folder))) as environment:
        for round_ in range(ROUNDS + 1):
            for command in COMMANDS:
                began = time.perf_counter()
                subprocess.run([program, *command.split()], check=True, capture_output=True, env=environment)
                if round_:  # the first round warms the file cache
                    times[command].append(time.perf_counter() - began)
    rows = [[f"`dino-lab {name}`", spread(times[name]), limit] for name, limit in COMMANDS.items()]
    text = table(["command", "seconds, median (range)", "asked, at most"], rows)
    text += f"\n\n{PLUGINS} plugins are installed; one of them is broken."
    return section("Start of the command line", "python -m benchmarks.startup", text)


def _plugins(program: str, folder: Path) -> list[Path]:
    for number in range(PLUGINS):
        words = ["new", f"loss_{number}", "--kind", "loss", "--into", str(folder)]
        subprocess.run([program, *words], check=True, capture_output=True)
    (folder / "dino-lab-loss-0" / "dino_lab_loss_0" / "loss_0.py").unlink()
    return sorted(folder.iterdir())


if __name__ == "__main__":
    print(main())
