"""What every teacher that follows the student has."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from dino_lab.components.teachers._twin import twin
from dino_lab.network import Network
from dino_lab.types import Output, Views


class Follower(nn.Module):
    """A copy of the student as its teacher; mode 'eval' makes BatchNorm use its running statistics."""

    def __init__(self, student: Network, buffers: str, mode: str) -> None:
        super().__init__()
        if buffers == "own" and mode == "eval":
            raise ValueError(
                "in mode 'eval' the teacher gathers no statistics of its own; take the student's (buffers)"
            )
        self.network = twin(student)
        self.buffers_from, self.mode = buffers, mode
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training mode, in which the network may all the same be told to stay in evaluation mode."""
        super().train(mode)
        self.network.train(mode and self.mode == "train")
        return self

    @torch.no_grad()
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """The network's outputs [T, B, K] for the views in crops[0]."""
        return self.answer(self.network(views.crops[:1]))

    def answer(self, output: Output) -> Tensor:
        """The network's outputs, where it was asked by somebody else."""
        return output.z
