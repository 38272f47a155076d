"""The networks' outputs for a batch that is divided: over processes, in parts that need less memory, or both.

They are those of the whole batch at once, and so is the gradient. In parts, the backbone is computed twice,
after gradient caching (Gao et al., arXiv 2101.06983, Sec. 3.2). The first time no activation is kept. Head,
targets, loss and regularizers then see all images, as batch norm, negatives and centres need it, and give the
gradient of the features. The second time each part is differentiated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.network import Network, per_view
from dino_lab.training.build import Run
from dino_lab.training.draws import WholeBatchDraws
from dino_lab.training.gradients import AveragedGradients
from dino_lab.types import Output, Views

Backward = Callable[[Tensor, AveragedGradients], None]


def forward(run: Run, views: Views, labels: Tensor) -> tuple[Output, Tensor, Backward]:
    """The student's outputs (features [S, B, D]; z, p [S, B, K]), the teacher's [T, B, K], and a function.

    B counts the images of this process. The function takes what is minimised, made of these outputs, and adds
    its gradient to the student's weights.
    """
    if run.spec.train.accumulate > 1:
        parts = _Parts(run, views)
        student = parts.student()
        return student, parts.teacher(student, labels), parts.backward
    if collectives.processes() > 1:
        return _share(run, views, labels)
    with run.autocast():
        student = run.student(views.crops)
        teacher = run.teacher.forward(views, student, labels)
    return student, teacher, _backward


def _backward(objective: Tensor, gradients: AveragedGradients) -> None:
    with gradients.averaging():
        objective.backward()


def _share(run: Run, views: Views, labels: Tensor) -> tuple[Output, Tensor, Backward]:
    """The outputs for this process's images."""
    draws = WholeBatchDraws(run.spec.train.batch_size, collectives.share(run.spec.train.batch_size))
    with run.autocast():
        features = _encode(run.student, views, draws)
        with draws.of(len(features)):
            student = run.student.project(features)
        with draws.of(len(views.crops[0])):
            teacher = run.teacher.forward(views, student, labels)

    def backward(objective: Tensor, gradients: AveragedGradients) -> None:
        # Blocks that are computed again draw again.
        again = draws.of(None) if run.spec.train.gradient_checkpointing else nullcontext()
        with again, gradients.averaging():
            objective.backward()

    return student, teacher, backward


class _Parts:
    """The outputs of a batch, and a way from their gradient to that of the weights."""

    def __init__(self, run: Run, views: Views) -> None:
        self._run, self._views = run, views
        batch = run.spec.train.batch_size
        self._first, count = collectives.share(batch).start, views.crops[0].shape[1]
        ends = torch.arange(count).tensor_split(min(run.spec.train.accumulate, count))
        self._parts = [slice(int(part[0]), int(part[-1]) + 1) for part in ends]  # of this process's images
        self._all = WholeBatchDraws(batch, slice(self._first, self._first + count))
        self._random = _random_state(run.device)
        self._features: Tensor

    def student(self) -> Output:
        """The student's outputs; its features are a leaf."""
        with torch.no_grad():
            found = [features for _, features in self._encoded()]
        self._features = torch.cat(found, 1).requires_grad_()
        with self._run.autocast(), self._all.of(len(self._features)):
            return self._run.student.project(self._features)

    def teacher(self, student: Output, labels: Tensor) -> Tensor:
        """The teacher's outputs [T, B, K]; of all images at once where its batch norm has to see them."""
        teacher, T = self._run.teacher, len(self._views.crops[0])
        if not _works(teacher) or normalises(teacher):
            with self._run.autocast(), self._all.of(T):
                return teacher.forward(self._views, student, labels)
        found, random = [], _random_state(self._run.device)
        for part in self._parts:
            _set_random_state(self._run.device, random)
            seen = Output(student.features[:, part], student.z[:, part], student.p[:, part])
            with self._run.autocast(), self._draws(part).of(T):
                found.append(teacher.forward(_some(self._views, part), seen, labels[part]))
        return torch.cat(found, 1)

    def backward(self, objective: Tensor, gradients: AveragedGradients) -> None:
        """Add the gradient of `objective` to the weights."""
        random = _random_state(self._run.device)
        with gradients.averaging():
            objective.backward()
            assert self._features.grad is not None, "the objective depends on the features"
            buffers = {name: buffer.clone() for name, buffer in self._run.student.named_buffers()}
            for part, features in self._encoded():
                more = gradients.adding_up() if part is not self._parts[-1] else nullcontext()
                with more:
                    features.backward(self._features.grad[:, part])
            with torch.no_grad():  # buffers moved when the parts were seen first
                for name, buffer in self._run.student.named_buffers():
                    buffer.copy_(buffers[name])
        _set_random_state(self._run.device, random)

    def _encoded(self) -> Iterator[tuple[slice, Tensor]]:
        """Each part, and the student's features [S, b, D] of it."""
        for part in self._parts:
            _set_random_state(self._run.device, self._random)
            with self._run.autocast():
                features = _encode(self._run.student, _some(self._views, part), self._draws(part))
            yield part, features

    def _draws(self, part: slice) -> WholeBatchDraws:
        images = slice(self._first + part.start, self._first + part.stop)
        return WholeBatchDraws(self._run.spec.train.batch_size, images)


def normalises(part: object) -> bool:
    """Whether a part has batch norm that uses the statistics of the batch."""
    modules = part.modules() if isinstance(part, nn.Module) else ()
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in modules)


def _works(teacher: object) -> bool:
    """Whether a teacher has something to compute, and is not the student or the labels."""
    return isinstance(teacher, nn.Module) and any(True for _ in teacher.parameters())


def _encode(student: Network, views: Views, draws: WholeBatchDraws) -> Tensor:
    """Features [S, b, D] of crops [V, b, C, H, W] by size."""
    features = []
    for group in views.crops:
        with draws.of(len(group)):
            features.append(per_view(student.encode, group))
    return torch.cat(features)


def _some(views: Views, images: slice) -> Views:
    return Views([crops[:, images] for crops in views.crops], views.pairs)


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
