"""The networks' outputs for a batch: at once, or in parts that need less memory and give the same gradient.

In parts, outputs are computed twice, after gradient caching (Gao et al., arXiv 2101.06983, Sec. 3.2). The
first time no activation is kept. Targets, loss and regularizers then see the whole batch, as negatives, batch
statistics and centres need it, and give the gradient of the outputs. The second time each part is
differentiated by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.training.build import Run
from dino_lab.types import Output, Views


def forward(run: Run, views: Views, labels: Tensor) -> tuple[Output, Tensor, Callable[[Tensor], None]]:
    """The student's outputs (features [S, B, D]; z, p [S, B, K]), the teacher's [T, B, K], and a function.

    The function takes what is minimised, made of these outputs, and adds its gradient to the student's
    weights.
    """
    if run.spec.train.accumulate == 1:
        with run.autocast():
            student = run.student(views.crops)
            teacher = run.teacher.forward(views, student, labels)
        return student, teacher, torch.Tensor.backward
    cached = _Cached(run, views)
    return cached.student, cached.teacher(labels), cached.backward


@dataclass(frozen=True)
class _Part:
    """Some images of a batch, and the state of the random numbers before the student sees them."""

    images: slice
    random: list[Tensor]


class _Cached:
    """The outputs of a batch as leaves, and a way from their gradient to that of the weights."""

    def __init__(self, run: Run, views: Views) -> None:
        self._run, self._views = run, views
        self._parts: list[_Part] = []
        outputs = []
        batch, start = views.crops[0].shape[1], 0
        for length in (len(part) for part in torch.empty(batch).chunk(run.spec.train.accumulate)):
            part = _Part(slice(start, start + length), _random_state(run.device))
            self._parts.append(part)
            with torch.no_grad(), run.autocast():
                outputs.append(run.student(_images(views, part).crops))
            start += length
        features = torch.cat([out.features for out in outputs], 1).requires_grad_()
        z = p = torch.cat([out.z for out in outputs], 1).requires_grad_()
        if run.student.predictor is not None:
            p = torch.cat([out.p for out in outputs], 1).requires_grad_()
        self.student = Output(features, z, p)

    def teacher(self, labels: Tensor) -> Tensor:
        """The teacher's outputs [T, B, K]."""
        found = []
        for part in self._parts:
            here = part.images
            student = Output(
                *(value[:, here] for value in (self.student.features, self.student.z, self.student.p))
            )
            with self._run.autocast():
                found.append(self._run.teacher.forward(_images(self._views, part), student, labels[here]))
        return torch.cat(found, 1)

    def backward(self, total: Tensor) -> None:
        """Add the gradient of `total` to the weights."""
        total.backward()
        student = self._run.student
        buffers = {name: buffer.clone() for name, buffer in student.named_buffers()}
        for part in self._parts:
            _set_random_state(self._run.device, part.random)
            with self._run.autocast():
                again = student(_images(self._views, part).crops)
            pairs = [(again.features, self.student.features), (again.z, self.student.z)]
            if self.student.p is not self.student.z:
                pairs.append((again.p, self.student.p))
            known = [(out, leaf.grad[:, part.images]) for out, leaf in pairs if leaf.grad is not None]
            torch.autograd.backward([out for out, _ in known], [gradient for _, gradient in known])
        with torch.no_grad():  # buffers moved when the parts were seen first
            for name, buffer in student.named_buffers():
                buffer.copy_(buffers[name])


def _images(views: Views, part: _Part) -> Views:
    return Views([crops[:, part.images] for crops in views.crops], views.pairs)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
