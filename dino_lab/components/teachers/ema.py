"""The moving average of the student."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.teachers._student_copy import StudentCopy, TeacherMode
from dino_lab.network import Network
from dino_lab.registry import register
from dino_lab.schedule import Momentum, Schedule


@register("teacher", "ema")
class Ema(StudentCopy):
    """Moving average of the student's weights: t = momentum * t + (1 - momentum) * s, after each step.

    DINO, arXiv 2104.14294, Sec. 3.1; BYOL, arXiv 2006.07733, Eq. 1. `buffers` says where the BatchNorm
    statistics come from: the teacher's `own` forward passes, a `copy` of the student's, or their `ema`
    (whole numbers are copied, never averaged). `mode: eval` makes the teacher use those statistics instead of
    the batch's.
    """

    def __init__(
        self,
        student: Network,
        *,
        momentum: Annotated[
            Momentum, Field(description="m of the moving average, per step; DINO: 0.996, rising to 1")
        ] = Schedule(start=0.996, end=1.0, shape="cosine"),
        buffers: Annotated[
            Literal["own", "copy", "ema"],
            Field(description="BatchNorm statistics: of its own passes, the student's, or their average"),
        ] = "own",
        mode: TeacherMode = "train",
    ) -> None:
        super().__init__(student, buffers, mode)
        self.momentum = momentum

    @torch.no_grad()
    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Move towards the student."""
        share = 1 - self.momentum(progress)
        weights = dict(student.named_parameters())
        names, averages = zip(*self.network.named_parameters(), strict=True)
        torch._foreach_lerp_(averages, [weights[name].detach() for name in names], share)
        if self.buffers_from == "own":
            return
        theirs, of_kind = dict(student.named_buffers()), defaultdict[torch.dtype, list[list[Tensor]]](list)
        for name, average in self.network.named_buffers():
            of_kind[average.dtype].append([average, theirs[name]])
        for kind, both in of_kind.items():  # a launch for all of a kind
            own, its = map(list, zip(*both, strict=True))
            if self.buffers_from == "ema" and kind.is_floating_point:
                torch._foreach_lerp_(own, its, share)
            else:
                torch._foreach_copy_(own, its)
