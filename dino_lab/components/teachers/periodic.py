"""A teacher that is an earlier copy of the student."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.teachers._student_copy import StudentCopy, TeacherMode, student_copy
from dino_lab.network import Network
from dino_lab.registry import register


@register("teacher", "periodic")
class Periodic(StudentCopy):
    """A copy of the student, made anew after every `every` steps or epochs, and used `lag` periods later.

    Of DINO, arXiv 2104.14294, Sec. 5.2 and Fig. 6, the student copy is every step without lag, the previous
    iteration (the weights before the last step) every step with lag 1, the previous epoch every epoch without
    lag. `buffers` says where the BatchNorm statistics come from: a `copy` of the student's, made with that of
    the weights, or the teacher's `own` forward passes. `mode: eval` makes the teacher use them instead of the
    batch's. Each period of lag keeps one more copy of the network.
    """

    def __init__(
        self,
        student: Network,
        *,
        every: Annotated[int, Field(gt=0, description="length of a period, in units of `unit`")] = 1,
        unit: Annotated[Literal["step", "epoch"], Field(description="what `every` counts")] = "epoch",
        lag: Annotated[
            int, Field(ge=0, le=100, description="periods that a copy waits before it teaches")
        ] = 0,
        buffers: Annotated[
            Literal["copy", "own"],
            Field(
                description="BatchNorm statistics: copied from the student, or of the teacher's own passes"
            ),
        ] = "copy",
        mode: TeacherMode = "train",
    ) -> None:
        super().__init__(student, buffers, mode)
        self.every, self.unit = every, unit
        self.waiting = nn.ModuleList(student_copy(student) for _ in range(lag))  # the oldest first
        self.age = 0  # units since the last copy

    @torch.no_grad()
    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Copy, if it is time."""
        self.age += self.unit == "step" or ends_epoch
        if self.age < self.every:
            return
        self.age = 0
        for older, newer in pairwise([self.network, *self.waiting, student]):
            _copy(newer, older, buffers=self.buffers_from == "copy")

    # In the state_dict, but counted on the host: reading a buffer of a GPU would wait for it at every step.
    def get_extra_state(self) -> Tensor:
        """The age."""
        return torch.tensor(self.age)

    def set_extra_state(self, state: Tensor) -> None:
        """Put the age back."""
        self.age = int(state)


def _copy(source: nn.Module, target: nn.Module, *, buffers: bool) -> None:
    """Weights and perhaps buffers by name; the source may have more (a predictor)."""
    weights = dict(source.named_parameters())
    names, copies = zip(*target.named_parameters(), strict=True)
    torch._foreach_copy_(copies, [weights[name].detach() for name in names])
    if buffers:
        states = dict(source.named_buffers())
        for name, copy in target.named_buffers():
            copy.copy_(states[name])
