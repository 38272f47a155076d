"""The networks of the runs that are trained: each by itself, or those of several runs at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dino_lab.protocols import GivesAnswer, ability
from dino_lab.training.build import Run
from dino_lab.training.stacked.stack import Stack
from dino_lab.types import Output, Views


class OneByOne:
    """Every network by itself; what is given and returned in a list is of one run each."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs

    def students(self, views: Sequence[Views]) -> list[Output]:
        """What the students say of their crops."""
        return [run.student(its.crops) for run, its in zip(self._runs, views, strict=True)]

    def teachers(
        self, views: Sequence[Views], students: Sequence[Output], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """What the teachers say, [T, B, K]."""
        given = zip(self._runs, views, students, labels, strict=True)
        return [run.teacher.forward(its, student, known) for run, its, student, known in given]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for run in self._runs:
            run.optimizer.zero_grad()

    def hand_out_gradients(self) -> None:
        """After the last backward pass of a step: give every parameter its own. Here each has it already."""


class AtOnce(OneByOne):
    """All students at once, and all teachers, where each is a network of the same shape in the same mode."""

    def __init__(self, runs: Sequence[Run]) -> None:
        super().__init__(runs)
        self._students = Stack([run.student for run in runs])
        teachers = [ability(run.teacher, GivesAnswer) for run in runs]
        self._answering = [teacher for teacher in teachers if teacher is not None]
        networks = [teacher.network if teacher is not None else None for teacher in teachers]
        same = None not in networks and all(_form(its) == _form(networks[0]) for its in networks)
        self._teachers = Stack([its for its in networks if its is not None]) if same else None

    def students(self, views: Sequence[Views]) -> list[Output]:
        """All at once."""
        return self._students([its.crops for its in views])

    def teachers(
        self, views: Sequence[Views], students: Sequence[Output], labels: Sequence[Tensor]
    ) -> list[Tensor]:
        """All at once where that can be."""
        if self._teachers is None:
            return super().teachers(views, students, labels)
        with torch.no_grad():
            outputs = self._teachers([its.crops[:1] for its in views])
        return [teacher.answer(output) for teacher, output in zip(self._answering, outputs, strict=True)]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self._students.zero_grad()

    def hand_out_gradients(self) -> None:
        """Cut them from those of all."""
        self._students.hand_out_gradients()


def _form(network: Any) -> list[tuple[Any, ...]]:
    """Names, shapes and modes, which networks that are computed at once have in common."""
    shapes = [(name, tensor.shape) for name, tensor in network.state_dict().items()]
    return shapes + [(name, type(part), part.training) for name, part in network.named_modules()]
