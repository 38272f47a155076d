"""The networks of several runs, each kind computed at once where shapes and modes allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dino_lab.protocols import GivesAnswer, ability
from dino_lab.training.build import Run
from dino_lab.training.stacked.stack import Stack
from dino_lab.types import Output, Views


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
