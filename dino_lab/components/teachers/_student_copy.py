"""Copies of the student, and teachers that are one."""

from __future__ import annotations

import copy
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.network import Network
from dino_lab.types import Output, Views

TeacherMode = Annotated[
    Literal["train", "eval"],
    Field(description="BatchNorm of the teacher: train: the batch's statistics, eval: the running ones"),
]


def student_copy(student: Network) -> Network:
    """A copy without predictor, gradients, dropout and stochastic depth."""
    return as_teacher(copy.deepcopy(student))


def as_teacher(network: Network) -> Network:
    """The network itself, from now on without predictor, gradients, dropout and stochastic depth."""
    network.predictor = None
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # timm's DropPath
            vars(module)["drop_prob"] = 0.0
    return network.requires_grad_(False)


class StudentCopy(nn.Module):
    """A teacher that is a copy of the student; mode 'eval' makes BatchNorm use its running statistics."""

    def __init__(self, student: Network, buffers: str, mode: str) -> None:
        super().__init__()
        if buffers == "own" and mode == "eval":
            raise ValueError(
                "in mode 'eval' the teacher gathers no statistics of its own; take the student's (buffers)"
            )
        self.network = student_copy(student)
        self.buffers_from, self.mode = buffers, mode
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training mode; the network stays in evaluation mode where `mode: eval` asks for it."""
        super().train(mode)
        self.network.train(mode and self.mode == "train")
        return self

    @torch.no_grad()
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor:
        """The network's outputs [T, B, K] for the views in crops[0]."""
        return self.answer(self.network(views.crops[:1]))

    @torch.no_grad()
    def forward_tokens(self, views: Views, student: Output, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the outputs [T, B, K', h, w] of the network's token head."""
        output = self.network(views.crops[:1])
        return self.answer(output), output.tokens

    def answer(self, output: Output) -> Tensor:
        """The outputs [T, B, K], where the network was computed by the caller."""
        return output.z
