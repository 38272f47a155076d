"""The loop."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar, cast

import torch
from torch import Tensor

from dino_lab.building.seeding import seed_everything
from dino_lab.training.build import Run
from dino_lab.training.diagnostics import diagnose, diagnose_distribution
from dino_lab.training.optimizer import clip_gradients, set_rates
from dino_lab.training.stacked.forward import AtOnce, OneByOne
from dino_lab.types import Output, Views

Item = TypeVar("Item")
Batch = tuple[Tensor, Tensor]  # images and labels
Seen = tuple[Tensor, dict[str, Tensor]]  # of a run: what was minimised, and the numbers of a row


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
    for (row,) in train_together([run], start):
        if isinstance(row, NonFinite):
            raise row
        yield row


def train_together(runs: Sequence[Run], start: int = 0) -> Iterator[list[Row | NonFinite]]:
    """As `train`, for several runs with equal `data` and `train` sections: a row of each, or why not.

    After a NonFinite the others go on in a new call.
    """
    settings, total = runs[0].spec.train, runs[0].total_steps
    networks, alike = OneByOne(runs) if len(runs) == 1 else AtOnce(runs), _alike(runs)
    for step, (waited, batches) in enumerate(_timed(islice(_batches(runs, start), total - start)), start):
        writes = (step + 1) % settings.log_every == 0 or runs[0].ends_epoch(step)
        generators = [run.generator(step) for run in runs]
        if len(runs) == 1:
            seed_everything(runs[0].spec.seed, "step", step)

        networks.zero_grad()
        parts: list[list[Seen]] = []
        for images, labels in _parts(batches, settings.accumulate):
            views = _views(runs, alike, images, generators)
            share = len(images[0]) / len(batches[0][0])
            parts.append(_backward(runs, networks, views, labels, step, share=share, writes=writes))
        networks.hand_out_gradients()
        moved = [
            _move(run, step, seen, writes) for run, seen in zip(runs, zip(*parts, strict=True), strict=True)
        ]
        epoch = (step + 1) / runs[0].steps_per_epoch
        yield [
            its if isinstance(its, NonFinite) else Row(step + 1, total, epoch, its, waited) for its in moved
        ]


def _batches(runs: Sequence[Run], start: int) -> Iterator[list[Batch]]:
    """A batch for each run, the same for those with the same seed."""
    size = runs[0].spec.train.batch_size
    sources = {run.spec.seed: run.data.train(size, run.spec.seed, start) for run in runs}
    for batches in zip(*sources.values(), strict=True):
        by_seed = dict(zip(sources, batches, strict=True))
        yield [by_seed[run.spec.seed] for run in runs]


def _timed(items: Iterable[Item]) -> Iterator[tuple[float, Item]]:
    """Each item, and the seconds that it took to come."""
    iterator, end = iter(items), object()
    while True:
        began = time.perf_counter()
        item = next(iterator, end)
        if item is end:
            return
        yield time.perf_counter() - began, cast(Item, item)


def _parts(batches: Sequence[Batch], parts: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """The batches of all runs, cut in parts: images and labels of each run."""
    images, labels = ([tensor.chunk(parts) for tensor in column] for column in zip(*batches, strict=True))
    for part in range(len(images[0])):
        yield [chunks[part] for chunks in images], [chunks[part] for chunks in labels]


def _alike(runs: Sequence[Run]) -> list[int]:
    """For each run, the first that has the same crops."""
    kinds = [(run.spec.seed, run.spec.augment) for run in runs]
    return [kinds.index(kind) for kind in kinds]


def _views(
    runs: Sequence[Run],
    alike: Sequence[int],
    images: Sequence[Tensor],
    generators: Sequence[torch.Generator],
) -> list[Views]:
    """Crops for each run, made once for those that are alike."""
    made: list[Views] = []
    for i, run in enumerate(runs):
        made.append(run.augment.forward(images[i], generators[i]) if alike[i] == i else made[alike[i]])
    return made


def _backward(
    runs: Sequence[Run],
    networks: OneByOne,
    views: Sequence[Views],
    labels: Sequence[Tensor],
    step: int,
    *,
    share: float,
    writes: bool,
) -> list[Seen]:
    """Networks, targets, losses and gradients of one part of a batch; of each run, its share of what is
    minimised and of each number.
    """
    with runs[0].autocast():
        students = networks.students(views)  # features [S, B, D]; z, p [S, B, K]
        teachers = networks.teachers(views, students, labels)  # [T, B, K]
    seen = []
    for run, its, student, teacher in zip(runs, views, students, teachers, strict=True):
        if len(runs) > 1:  # what components draw is what they draw when the run is alone
            seed_everything(run.spec.seed, "step", step)
        seen.append(_compare(run, its, student, teacher, step / run.total_steps, writes=writes))
    torch.autograd.backward([total * share for total, _ in seen])
    return [
        (total.detach() * share, {key: value * share for key, value in numbers.items()})
        for total, numbers in seen
    ]


def _compare(
    run: Run, views: Views, student: Output, teacher: Tensor, progress: float, *, writes: bool
) -> Seen:
    """What is minimised, and the numbers of a row."""
    target = run.targets.forward(teacher.float(), progress)  # [T, B, K]
    compared = (student.p.float(), target, views.pairs)
    measured = _measure(run, *compared) if writes else {}  # first: the loss may change its state
    loss = run.loss.forward(*compared)
    added = {name: part.forward(views, student) for name, part in run.regularizers.items()}
    total = loss + sum(part.weight * added[name] for name, part in run.regularizers.items())

    numbers = {"loss": loss.detach()}
    if writes:
        numbers |= measured | {name: value.detach() for name, value in added.items()}
        numbers |= diagnose(student, teacher)
        if run.targets.distribution:
            numbers |= diagnose_distribution(target.detach(), views.pairs)
            if run.loss.cross_entropy:
                numbers["kl"] = numbers["loss"] - numbers["entropy"]
    return total, numbers


@torch.no_grad()
def _measure(run: Run, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
    """What the loss says of itself beside its value, if it says anything."""
    return run.loss.measure(student, target, pairs) if hasattr(run.loss, "measure") else {}


def _move(run: Run, step: int, seen: Sequence[Seen], writes: bool) -> dict[str, float] | NonFinite:
    """Clip, move student and teacher; the numbers of a row, if one is written."""
    loss = torch.stack([part for part, _ in seen]).sum()
    if (writes or run.device.type == "cpu") and not loss.isfinite():
        return NonFinite(f"the loss is {loss.item()} at step {step}")
    progress = step / run.total_steps
    norm = clip_gradients(run.parameters, run.spec.optim.clip)
    lr, weight_decay = set_rates(run.optimizer, run.spec.optim, run.spec.train.batch_size, progress)
    run.optimizer.step()
    run.teacher.update(run.student, progress, run.ends_epoch(step))
    if not writes:
        return {}
    numbers = {key: float(sum(part[key] for _, part in seen)) for key in seen[0][1]}
    return numbers | {"gradient_norm": norm.item(), "lr": lr, "weight_decay": weight_decay}
