"""How long a trial will take, from a few of its steps; and which numbers its rows have."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch

from dino_lab.protocols import SharedData
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.training.build import build
from dino_lab.training.loop import train

STEPS = 4  # the first is not counted
_LOOK = 2.0  # seconds after which no further step is measured


@dataclass(frozen=True)
class Measured:
    """Seconds of a whole trial, and the names of all numbers of its rows."""

    seconds: float
    numbers: tuple[str, ...]


def measure(
    spec: Spec, registry: Registry, device: torch.device, threads: int, shared: SharedData | None
) -> Measured:
    """Build a spec, make a few steps, evaluate once; leaves nothing behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.perf_counter()
        run = build(
            spec.model_copy(update={"train": spec.train.model_copy(update={"log_every": 1})}),
            registry,
            device,
            shared,
        )
        built = time.perf_counter() - began
        steps: list[float] = []
        numbers: dict[str, float] = {}
        rows = train(run)
        for _ in range(STEPS):
            now = time.perf_counter()
            row = next(rows, None)
            if row is None:
                break
            numbers |= row.numbers
            steps.append(time.perf_counter() - now)
            if time.perf_counter() - began - built > _LOOK:
                break
        now = time.perf_counter()
        scores = [name for scored in run.evaluate_after(0) for name in scored.named_scores]
        evaluation = time.perf_counter() - now
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    step = min(steps[1:] or steps)
    evaluations = 1 + sum(
        bool(run.due(epoch * run.steps_per_epoch)) for epoch in range(1, spec.train.epochs + 1)
    )
    seconds = built + run.total_steps * step + evaluations * evaluation
    names = dict.fromkeys(itertools.chain(numbers, scores, ["images_per_second"]))
    return Measured(seconds, tuple(names))
