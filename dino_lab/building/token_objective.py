"""The second objective of a run, on patch tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.protocols import Loss, Targets
from dino_lab.types import at_least_float32


class TokenObjective(nn.Module):
    """Distance of the student's patch tokens to the teacher's at the same place of the same crop.

    Distillation of spatial features, as in AM-RADIO (Ranzinger et al., arXiv 2312.06709). Each token is a
    sample to targets and loss; without targets the teacher's tokens are the target. A teacher's map of
    another height and width is resized bilinearly to that of the student.
    """

    def __init__(self, targets: Targets | None, loss: Loss, weight: float) -> None:
        super().__init__()
        self.targets, self.loss, self.weight = targets, loss, weight

    def forward(self, student: Tensor, teacher: Tensor, progress: float) -> Tensor:
        """Tokens [T, B, K, h, w] and [T, B, K, h', w'] to a scalar, without the weight."""
        student = at_least_float32(student)
        teacher = resized(teacher.to(student.dtype), (student.shape[-2], student.shape[-1]))
        target = as_samples(teacher)
        if self.targets is not None:
            target = self.targets.forward(target, progress)
        same_view = torch.eye(len(student), dtype=torch.int8, device=student.device)
        return self.loss.forward(as_samples(student), target, same_view)


def resized(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [T, B, K, h', w'] with a height and width, bilinearly and without aliases where they shrink."""
    if tokens.shape[-2:] == size:
        return tokens
    smaller = F.interpolate(tokens.flatten(0, 1), size, mode="bilinear", antialias=True)
    return smaller.unflatten(0, tokens.shape[:2])


def as_samples(tokens: Tensor) -> Tensor:
    """[T, B, K, h, w] to [T, B * h * w, K], the tokens of an image side by side."""
    return tokens.flatten(3).transpose(2, 3).flatten(1, 2)
