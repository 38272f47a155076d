"""The quickstart as a user runs it: seconds, and 20-NN before, after, and of raw pixels on the same split."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import section, spread, table
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.runs.status import read_status
from dino_lab.spec.file import load
from dino_lab.training.build import build

SPEC = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
SEEDS = 3


def raw_pixels(settings: list[str]) -> float:
    """20-NN accuracy of pixels less the mean training image, by the same evaluator."""
    run = build(load(SPEC, settings).spec, registry, torch.device("cpu"))
    images = torch.cat([images for images, _ in run.data.bank(500)]).float()
    middle = images.mean(0)

    pixels = Network(_Pixels(middle / 255), nn.Identity())
    (knn,) = run.evaluators.values()
    return knn.forward(Encoder(pixels, run.data.size, nullcontext), run.data)["20nn"]


class _Pixels(nn.Module):
    """Pixels less `middle` for features."""

    def __init__(self, middle: Tensor) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C * H * W]."""
        return (images - self.middle).flatten(1)


def one_run(settings: list[str]) -> tuple[float, float, float]:
    """Seconds of the whole process, and 20-NN before and after."""
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
    return seconds, status.scores_before["knn.20nn"], status.scores_after["knn.20nn"]


def main() -> str:
    """Three seeds of the spec; the data stays the same."""
    raw = raw_pixels([])
    results = [one_run([f"seed={seed}"]) for seed in range(SEEDS)]
    seconds, before, after = zip(*results, strict=True)
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
