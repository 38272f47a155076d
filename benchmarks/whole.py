"""Images a second where crops are cut from whole images, against squares that are cut out before."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.packed import write_photographs
from benchmarks.report import section, spread, table
from dino_lab.components.augment.multicrop import MultiCrop
from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data._storage import never_resident
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import build
from dino_lab.training.loop import train

ROUNDS = 5
BATCH, STEPS = 64, 6
CLOTHING = Path(os.environ.get("DINO_LAB_DATA", "/nowhere")) / "clothing10"
WAYS: dict[str, dict[str, Any]] = {
    "squares": {},
    "full": {"crops": "full"},
    "full, longest 320": {"crops": "full", "longest": 320},
}
Job = Callable[[], float]


def _files(folder: Path, options: dict[str, Any]) -> Job:
    """Files read, decoded and cut into DINO's crops."""
    data = ImageFolder(torch.device("cpu"), path=str(folder), size=256, options=FileOptions(**options))
    augment = MultiCrop()

    def rate() -> float:
        batches = data.train(BATCH, 0, 0)
        augment.forward(next(batches)[0], torch.Generator())
        began = time.perf_counter()
        for images, _ in islice(batches, STEPS):
            augment.forward(images, torch.Generator())
        return BATCH * STEPS / (time.perf_counter() - began)

    return rate


def _training(options: dict[str, Any]) -> Job:
    """Steps of `experiments/photographs.yaml` on photographs in memory."""
    data = {"name": "parquet", "path": str(CLOTHING), "size": 64, "test": "val*.parquet"}
    given = ", ".join(f"{key}: {value}" for key, value in {**data, **options}.items())
    file = Path(__file__).parents[1] / "experiments" / "photographs.yaml"
    spec = load(file, ["data={" + given + "}"]).spec
    run = build(spec, registry, torch.device("cpu"))

    def rate() -> float:
        rows = train(run)
        next(rows)
        began = time.perf_counter()
        done = sum(1 for _ in islice(rows, STEPS))
        rows.close()
        return done * run.spec.train.batch_size / (time.perf_counter() - began)

    return rate


def _compared(jobs: Mapping[str, Job]) -> str:
    """A table of interleaved rounds."""
    rates: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(ROUNDS):
        for name, job in jobs.items():
            rates[name].append(job())
    base = rates["squares"]
    lines = [
        [name, spread(rate, 0), spread([a / b for a, b in zip(rate, base, strict=True)])]
        for name, rate in rates.items()
    ]
    return table(["crops", "images/s, median (range)", "times squares, in pairs"], lines)


def main() -> str:
    """Files that are decoded each time, and where there is clothing10, whole steps on images in memory."""
    with tempfile.TemporaryDirectory() as place, never_resident():
        write_photographs(Path(place), BATCH * (STEPS + 3))
        files = _compared({name: _files(Path(place), options) for name, options in WAYS.items()})
    text = f"JPEG files of 500 x 400 decoded and cut into DINO's 2 x 224 + 8 x 96 pixels, batch {BATCH}; "
    text += f"squares have 256 pixels:\n\n{files}\n\n"
    if CLOTHING.is_dir():
        ways = {name: _training(options) for name, options in list(WAYS.items())[:2]}
        text += "Steps of `experiments/photographs.yaml` on clothing10 (3,068 photographs of 160 pixels on "
        text += f"the short side, in memory); squares have 64 pixels:\n\n{_compared(ways)}\n\n"
    return section("Data: whole images", "python -m benchmarks.whole", text + "Asked: 0.8 times squares.")


if __name__ == "__main__":
    print(main())
