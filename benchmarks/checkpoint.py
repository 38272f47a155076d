"""What saving costs: the time of one checkpoint of the quickstart, against the default interval."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from benchmarks.report import section, spread, table
from dino_lab.cli.options import CHECKPOINT_SECONDS
from dino_lab.registry import registry
from dino_lab.runs.checkpoint import save_checkpoint
from dino_lab.runs.files import LAST
from dino_lab.spec.file import load
from dino_lab.training.build import build
from dino_lab.training.loop import train

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def measure(spec_file: Path, settings: list[str]) -> tuple[list[float], float]:
    """Seconds of seven checkpoints after one step, and the size of the file in MB."""
    run = build(load(spec_file, settings).spec, registry, torch.device("cpu"))
    next(train(run))
    with tempfile.TemporaryDirectory() as folder:
        times = []
        for _ in range(8):
            began = time.perf_counter()
            save_checkpoint(Path(folder), run.spec.hash, 1, 0.0, run.state_dict())
            times.append(time.perf_counter() - began)
        return times[1:], (Path(folder) / LAST).stat().st_size / 1e6


def main() -> str:
    """Quickstart, and a ViT-S/16 with 65,536 prototypes."""
    large = ["backbone={name: vit, width: 384, depth: 12, heads: 6, patch: 16}"]
    large += ["head={name: prototypes, hidden: 2048, bottleneck: 256, dim: 65536}"]
    rows = []
    for name, settings in (("quickstart", []), ("ViT-S/16, 65,536 prototypes", large)):
        times, size = measure(EXPERIMENTS / "quickstart.yaml", settings)
        share = sorted(times)[len(times) // 2] / CHECKPOINT_SECONDS
        rows.append([name, f"{size:.0f} MB", spread(times, 3), f"{share:.2%}"])
    text = table(["run", "last.pt", "seconds, median (range)", "share of the wall time"], rows)
    text += f"\n\nThe default interval is {CHECKPOINT_SECONDS:g} s. Asked: under 2 %."
    return section("Checkpoints", "python -m benchmarks.checkpoint", text)


if __name__ == "__main__":
    print(main())
