"""How long trials will take, from a few steps; and which numbers their rows have."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dino_lab.errors import UserError
from dino_lab.protocols import SharedData
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.training.build import build
from dino_lab.training.loop import NonFinite, train_together

STEPS = 4  # the first is not counted
_LOOK = 2.0  # seconds after which no further step is measured


@dataclass(frozen=True)
class Measured:
    """Seconds of a whole trial, or pack, and the names of all numbers of its rows."""

    seconds: float
    numbers: tuple[str, ...]


def measure(
    specs: Sequence[Spec],
    registry: Registry,
    device: torch.device,
    threads: int,
    shared: SharedData | None,
) -> Measured:
    """Build a spec, or those of a pack, make a few steps, evaluate one; leaves nothing behind."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        began = time.perf_counter()
        runs = [build(_writing(spec), registry, device, shared) for spec in specs]
        run, epochs = runs[0], specs[0].train.epochs
        built = time.perf_counter() - began
        steps: list[float] = []
        numbers: dict[str, float] = {}
        steps_of_all = train_together(runs)
        for _ in range(STEPS):
            now = time.perf_counter()
            rows = next(steps_of_all, None)
            if rows is None:
                break
            if isinstance(rows[0], NonFinite):
                raise UserError(f"{specs[0].name}: {rows[0]}")
            numbers |= rows[0].numbers
            steps.append(time.perf_counter() - now)
            if time.perf_counter() - began - built > _LOOK:
                break
        now = time.perf_counter()
        scores = [name for scored in run.evaluate(run.due(0)) for name in scored.named_scores]
        evaluation = time.perf_counter() - now
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    step = min(steps[1:] or steps)
    evaluations = 1 + sum(bool(run.due(epoch * run.steps_per_epoch)) for epoch in range(1, epochs + 1))
    seconds = built + run.total_steps * step + evaluations * evaluation * len(runs)
    names = dict.fromkeys(itertools.chain(numbers, scores, ["images_per_second"]))
    return Measured(seconds, tuple(names))


def _writing(spec: Spec) -> Spec:
    """The spec with a row after each step."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"log_every": 1})})
