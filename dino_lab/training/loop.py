"""The loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

import torch
from torch import Tensor

from dino_lab.training.build import Run
from dino_lab.training.diagnostics import diagnose, diagnose_distribution
from dino_lab.training.optimizer import clip_gradients, set_rates
from dino_lab.training.seeding import seed_everything

Item = TypeVar("Item")


class NonFinite(Exception):
    """The loss is no longer a number; raised before the weights are touched (on a GPU, at the next row)."""


@dataclass(frozen=True)
class Row:
    """What is known after `step` optimizer steps; `numbers` is empty where nothing is written down."""

    step: int
    total: int
    epoch: float
    numbers: dict[str, float]
    waited: float = 0.0  # seconds for this step's images; on a GPU those of the host, which may run ahead


def train(run: Run, start: int = 0) -> Iterator[Row]:
    """One row per step, after it. Suspended, it is always between two steps, so it may be saved there."""
    settings = run.spec.train
    batches = run.data.train(settings.batch_size, run.spec.seed, start)
    for step, (waited, (images, labels)) in enumerate(
        _timed(islice(batches, run.total_steps - start)), start
    ):
        progress = step / run.total_steps
        seed_everything(run.spec.seed, "step", step)
        writes = (step + 1) % settings.log_every == 0 or run.ends_epoch(step)

        run.optimizer.zero_grad()
        generator = run.generator(step)
        parts = zip(images.chunk(settings.accumulate), labels.chunk(settings.accumulate), strict=True)
        seen = [
            _backward(run, *part, generator, progress, share=len(part[0]) / len(images), writes=writes)
            for part in parts
        ]
        loss = torch.stack([part for part, _ in seen]).sum()
        if (writes or run.device.type == "cpu") and not loss.isfinite():
            raise NonFinite(f"the loss is {loss.item()} at step {step}")
        norm = clip_gradients(run.parameters, run.spec.optim.clip)
        lr, weight_decay = set_rates(run.optimizer, run.spec.optim, settings.batch_size, progress)
        run.optimizer.step()
        run.teacher.update(run.student, progress, run.ends_epoch(step))

        numbers: dict[str, float] = {}
        if writes:
            numbers = {key: float(sum(part[key] for _, part in seen)) for key in seen[0][1]}
            numbers |= {"gradient_norm": norm.item(), "lr": lr, "weight_decay": weight_decay}
        yield Row(step + 1, run.total_steps, (step + 1) / run.steps_per_epoch, numbers, waited)


def _timed(items: Iterable[Item]) -> Iterator[tuple[float, Item]]:
    """Each item, and the seconds that it took to come."""
    iterator, end = iter(items), object()
    while True:
        began = time.perf_counter()
        item = next(iterator, end)
        if item is end:
            return
        yield time.perf_counter() - began, cast(Item, item)


def _backward(
    run: Run,
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    progress: float,
    *,
    share: float,
    writes: bool,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Views, networks, target, loss and gradient of one part of a batch; its share of what is minimised and
    of each number.
    """
    views = run.augment.forward(images, generator)
    with run.autocast():
        student = run.student(views.crops)  # features [S, B, D]; z, p [S, B, K]
        teacher = run.teacher.forward(views, student, labels)  # [T, B, K]
    target = run.targets.forward(teacher.float(), progress)  # [T, B, K]
    compared = (student.p.float(), target, views.pairs)
    measured = _measure(run, *compared) if writes else {}  # first: the loss may change its state
    loss = run.loss.forward(*compared)
    added = {name: part.forward(views, student) for name, part in run.regularizers.items()}
    total = loss + sum(part.weight * added[name] for name, part in run.regularizers.items())
    (total * share).backward()

    numbers = {"loss": loss.detach()}
    if writes:
        numbers |= measured | {name: value.detach() for name, value in added.items()}
        numbers |= diagnose(student, teacher)
        if run.targets.distribution:
            numbers |= diagnose_distribution(target.detach(), views.pairs)
            if run.loss.cross_entropy:
                numbers["kl"] = numbers["loss"] - numbers["entropy"]
    return total.detach() * share, {key: value * share for key, value in numbers.items()}


@torch.no_grad()
def _measure(run: Run, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """What the loss says of itself beside its value, if it says anything."""
    return run.loss.measure(student, target, pairs) if hasattr(run.loss, "measure") else {}
