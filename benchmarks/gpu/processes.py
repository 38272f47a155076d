"""A run on two processes against the same on one.

With one GPU both processes use it, and talk by gloo; with two each has one, and they talk by NCCL.
"""

from __future__ import annotations

from itertools import islice

import torch

from benchmarks.gpu.methods import FOLDER, SMALL, TOY
from benchmarks.gpu.worker import Work
from dino_lab.distributed.launch import Stop, launch
from dino_lab.distributed.world import World, joined
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import build
from dino_lab.training.loop import train

METHODS = ("dino", "simclr")
STEPS = 5
MOST = 1e-3  # relative difference of losses that passes


def measure(work: Work) -> None:
    """A row for each method."""
    for method in METHODS:

        def job(method: str = method) -> None:
            one, several = _losses(work, method, 1), _losses(work, method, 2)
            difference = max(abs(a - b) / abs(b) for a, b in zip(several, one, strict=True))
            passed = difference <= MOST
            work.row("Two processes", method=method, difference=difference, most=MOST, passed=passed)
            assert passed, f"{several}, {one} on one process"

        work.attempt(method, job, 40)
    work.note(
        "Two processes", f"The largest relative difference of {STEPS} losses from those of one process."
    )


def _losses(work: Work, method: str, processes: int) -> list[float]:
    settings = (*SMALL, *TOY) if work.toy else SMALL

    def train_some(world: World, stop: Stop) -> list[float]:
        count = torch.cuda.device_count() if work.on_gpu else 0
        device = torch.device("cuda", world.rank % count) if count else torch.device("cpu")
        with joined(world, device):
            steps = train(build(load(FOLDER / f"{method}.yaml", settings).spec, registry, device))
            return [row.numbers["loss"] for row in islice(steps, STEPS)]

    found: list[float] = launch(train_some, processes)
    return found
