"""The moving average of the student."""

from __future__ import annotations

from typing import Literal, Self

import torch
from torch import Tensor, nn

from dino_lab.components.teachers._twin import twin
from dino_lab.network import Network
from dino_lab.registry import register
from dino_lab.schedule import Momentum, Schedule
from dino_lab.types import Output, Views


@register("teacher", "ema")
class Ema(nn.Module):
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
        momentum: Momentum = Schedule(start=0.996, end=1.0, shape="cosine"),
        buffers: Literal["own", "copy", "ema"] = "own",
        mode: Literal["train", "eval"] = "train",
    ) -> None:
        super().__init__()
        if buffers == "own" and mode == "eval":
            raise ValueError(
                "in mode 'eval' the teacher gathers no statistics of its own: buffers: copy or ema"
            )
        self.network = twin(student)
        self.momentum, self.buffers_from, self.mode = momentum, buffers, mode
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which the network may all the same be told to stay in evaluation mode."""
        super().train(mode)
        self.network.train(mode and self.mode == "train")
        return self

    @torch.no_grad()
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """The average's outputs [T, B, K] for the views in crops[0]."""
        return self.network(views.crops[:1]).z

    @torch.no_grad()
    def update(self, student: Network, progress: float) -> None:
        """Move towards the student."""
        share = 1 - self.momentum(progress)
        weights = dict(student.named_parameters())
        names, averages = zip(*self.network.named_parameters(), strict=True)
        torch._foreach_lerp_(averages, [weights[name].detach() for name in names], share)
        if self.buffers_from == "own":
            return
        buffers = dict(student.named_buffers())
        for name, average in self.network.named_buffers():
            if self.buffers_from == "ema" and average.is_floating_point():
                average.lerp_(buffers[name], share)
            else:
                average.copy_(buffers[name])
