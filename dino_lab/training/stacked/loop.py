"""The loop of several runs whose networks have one shape; that of one run is `training/loop.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dino_lab.building.seeding import seed_everything
from dino_lab.training.build import Run
from dino_lab.training.loop import NonFinite, Row, compare, next_batch, on_host, train, update, writes_row
from dino_lab.training.stacked.networks import StackedNetworks
from dino_lab.types import Views


def train_each(runs: Sequence[Run], start: int = 0) -> Iterator[list[Row | NonFinite]]:
    """A row of each run after each step; one run alone needs no stack."""
    if len(runs) > 1:
        yield from train_stacked(runs, start)
        return
    try:
        for row in train(runs[0], start):
            yield [row]
    except NonFinite as error:
        yield [error]


def train_stacked(runs: Sequence[Run], start: int = 0) -> Iterator[list[Row | NonFinite]]:
    """As `train`, for runs with equal sections `data` and `train`: a row of each, or why there is none.

    After a NonFinite the others go on in a new call.
    """
    networks, total_steps = StackedNetworks(runs), runs[0].total_steps
    size = runs[0].spec.train.batch_size
    sources = {run.spec.seed: run.data.train(size, run.spec.seed, start) for run in runs}
    finite = [torch.ones((), dtype=torch.bool, device=run.device) for run in runs]
    for step in range(start, total_steps):
        batches = {seed: next_batch(source) for seed, source in sources.items()}
        writes, progress = writes_row(runs[0], step), step / total_steps
        networks.zero_grad()
        views = _views(runs, {seed: images for seed, (images, _, _) in batches.items()}, step)
        labels = [batches[run.spec.seed][1] for run in runs]
        with runs[0].autocast():
            students = networks.students(views)
            teachers = networks.teachers(views, students, labels)
        compared = []
        for run, its, student, teacher in zip(runs, views, students, teachers, strict=True):
            seed_everything(run.spec.seed, "step", step)  # so that components draw what they draw alone
            compared.append(compare(run, its, student, teacher, progress, writes=writes))
        torch.autograd.backward([objective for objective, _ in compared])
        networks.hand_out_gradients()

        rows: list[Row | NonFinite] = []
        waited, epoch = sum(batch[2] for batch in batches.values()), (step + 1) / runs[0].steps_per_epoch
        for i, (run, (objective, numbers)) in enumerate(zip(runs, compared, strict=True)):
            check = writes or run.device.type == "cpu"
            try:
                finite[i], changed = update(run, step, objective, finite[i], check=check)
            except NonFinite as error:
                rows.append(error)
                continue
            row = on_host(numbers | changed) if writes else {}
            rows.append(Row(step + 1, total_steps, epoch, row, waited, finite[i]))
        yield rows


def _views(runs: Sequence[Run], images: dict[int, torch.Tensor], step: int) -> list[Views]:
    """The crops of each run, made once for those with the same seed and augmentation."""
    kinds = [(run.spec.seed, run.spec.augment) for run in runs]
    made: list[Views] = []
    for i, run in enumerate(runs):
        first = kinds.index(kinds[i])
        made.append(
            made[first] if first < i else run.augment.forward(images[run.spec.seed], run.generator(step))
        )
    return made
