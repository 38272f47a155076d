"""The loop of several runs whose networks have one shape; that of one run is `training/loop.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dino_lab.building.seeding import seed_everything
from dino_lab.protocols import GivesAnswer, ability
from dino_lab.training.build import Run
from dino_lab.training.loop import NonFinite, Row, compare, next_batch, train, update, writes_row
from dino_lab.training.stacked.stack import Stack
from dino_lab.types import Images, Output, Views


class StackedNetworks:
    """Students and teachers of runs; a list has one item for each run."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._students = Stack([run.student for run in runs])
        teachers = [ability(run.teacher, GivesAnswer) for run in runs]
        self._answering = [teacher for teacher in teachers if teacher is not None]
        networks = [teacher.network if teacher is not None else None for teacher in teachers]
        same = None not in networks and all(_shapes(its) == _shapes(networks[0]) for its in networks)
        self._teachers = Stack([its for its in networks if its is not None]) if same else None

    def students(self, views: Sequence[Views]) -> list[Output]:
        """The students' outputs for their crops."""
        return self._students([its.crops for its in views])

    def teachers(
        self, views: Sequence[Views], students: Sequence[Output], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """The teachers' outputs [T, B, K]."""
        if self._teachers is None:
            given = zip(self._runs, views, students, labels, strict=True)
            return [run.teacher.forward(its, student, known) for run, its, student, known in given]
        with torch.no_grad():
            outputs = self._teachers([its.crops[:1] for its in views])
        return [teacher.answer(output) for teacher, output in zip(self._answering, outputs, strict=True)]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._students.zero_grad()

    def hand_out_gradients(self) -> None:
        """Give every student its own, after the backward pass."""
        self._students.hand_out_gradients()


def _shapes(network: Any) -> list[tuple[Any, ...]]:
    """Names, shapes and modes, which networks that are computed at once have in common."""
    shapes = [(name, tensor.shape) for name, tensor in network.state_dict().items()]
    return shapes + [(name, type(part), part.training) for name, part in network.named_modules()]


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
    sources = {run.spec.seed: run.data.train(size, run.spec.seed, run.place(start)) for run in runs}
    finite = [torch.ones((), dtype=torch.bool, device=run.device) for run in runs]
    for step in range(start, total_steps):
        batches = {seed: next_batch(source) for seed, source in sources.items()}
        writes, progress = writes_row(runs[0], step), runs[0].progress(step)
        networks.zero_grad()
        views = _views(runs, {seed: images for seed, (images, _, _) in batches.items()}, step)
        labels = [batches[run.spec.seed][1] for run in runs]
        with runs[0].autocast():
            students = networks.students(views)
            teachers = networks.teachers(views, students, labels)
        compared = []
        for run, its, student, teacher in zip(runs, views, students, teachers, strict=True):
            seed_everything(
                run.spec.seed, "step", run.place(step)
            )  # so that components draw what they draw alone
            compared.append(compare(run, its, student, teacher, None, progress, writes=writes))
        torch.autograd.backward([objective for objective, _ in compared])
        networks.hand_out_gradients()

        rows: list[Row | NonFinite] = []
        waited, epoch = sum(batch[2] for batch in batches.values()), (step + 1) / runs[0].steps_per_epoch
        for i, (run, (objective, numbers)) in enumerate(zip(runs, compared, strict=True)):
            try:
                finite[i], row = update(run, step, objective, numbers, finite[i], writes=writes)
            except NonFinite as error:
                rows.append(error)
                continue
            rows.append(Row(step + 1, total_steps, epoch, row, waited, finite[i]))
        yield rows


def _views(runs: Sequence[Run], images: dict[int, Images], step: int) -> list[Views]:
    """The crops of each run, made once for those with the same seed and augmentation."""
    kinds = [(run.spec.seed, run.spec.augment) for run in runs]
    made: list[Views] = []
    for i, run in enumerate(runs):
        first = kinds.index(kinds[i])
        made.append(
            made[first] if first < i else run.augment.forward(images[run.spec.seed], run.generator(step))
        )
    return made
