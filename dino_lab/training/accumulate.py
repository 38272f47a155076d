"""The networks' outputs for a batch that is divided: over processes, in parts that need less memory, or both.

They are those of the whole batch at once, and so is the gradient. In parts, the backbone is computed twice,
after gradient caching (Gao et al., arXiv 2101.06983, Sec. 3.2). The first time no activation is kept. Head,
targets, loss and regularizers then see all images, as batch norm, negatives and centres need it, and give the
gradient of the features. The second time each part is differentiated by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.network import Encoded, Network
from dino_lab.protocols import GivesTokenTargets, ability
from dino_lab.training.build import Run
from dino_lab.training.draws import WholeBatchDraws
from dino_lab.training.gradients import AveragedGradients
from dino_lab.training.normalised_parts import NormalisedParts
from dino_lab.types import Output, Views

Backward = Callable[[Tensor, AveragedGradients], None]
Taught = tuple[
    Tensor, Tensor | None
]  # the teacher's outputs [T, B, K], and tokens [T, B, K', h', w'] or None


def forward(run: Run, views: Views, labels: Tensor) -> tuple[Output, Taught, Backward]:
    """The student's outputs (features [S, B, D]; z, p [S, B, K]), the teacher's, and a function.

    B counts the images of this process. Tokens are there if the spec has a `token_loss`. The function takes
    what is minimised, made of these outputs, and adds its gradient to the student's weights.
    """
    if run.spec.train.accumulate > 1:
        parts = _Parts(run, views)
        student = parts.student()
        return student, parts.teacher(student, labels), parts.backward
    if collectives.processes() > 1:
        return _share(run, views, labels)
    with run.autocast():
        student = run.student(views.crops)
        teacher = _taught(run, views, student, labels)
    return student, teacher, _backward


def _taught(run: Run, views: Views, student: Output, labels: Tensor) -> Taught:
    if run.token_objective is None:
        return run.teacher.forward(views, student, labels), None
    teacher = ability(run.teacher, GivesTokenTargets)
    assert teacher is not None, "which was checked"
    return teacher.forward_tokens(views, student, labels)


def _backward(objective: Tensor, gradients: AveragedGradients) -> None:
    with gradients.averaging():
        objective.backward()


def _share(run: Run, views: Views, labels: Tensor) -> tuple[Output, Taught, Backward]:
    """The outputs for this process's images."""
    draws = WholeBatchDraws(run.spec.train.batch_size, collectives.share(run.spec.train.batch_size))
    with run.autocast():
        features, *tokens = _encode(run.student, views, draws)
        with draws.of(len(features)):
            student = run.student.project(features, *tokens)
        with draws.of(len(views.crops[0])):
            teacher = _taught(run, views, student, labels)

    def backward(objective: Tensor, gradients: AveragedGradients) -> None:
        with drawing_again(run, draws), gradients.averaging():
            objective.backward()

    return student, teacher, backward


class _Parts:
    """The outputs of a batch, and a way from their gradient to that of the weights."""

    def __init__(self, run: Run, views: Views) -> None:
        self._run, self._views = run, views
        batch = run.spec.train.batch_size
        self._first, count = collectives.share(batch).start, views.crops[0].shape[1]
        parts = torch.arange(count).tensor_split(min(run.spec.train.accumulate, count))
        self._parts = [slice(int(part[0]), int(part[-1]) + 1) for part in parts]  # of this process's images
        self._all = WholeBatchDraws(batch, slice(self._first, self._first + count))
        self._groups = [
            _Group(run, crops, self._parts, self._draws, tokens=i == 0) for i, crops in enumerate(views.crops)
        ]
        self._leaves: list[Encoded]  # of each group

    def student(self) -> Output:
        """The student's outputs; its features, and tokens if it has any, are leaves."""
        self._leaves = [tuple(x.requires_grad_() for x in group.encode()) for group in self._groups]
        features = torch.cat([leaves[0] for leaves in self._leaves])
        with self._run.autocast(), self._all.of(len(features)):
            return self._run.student.project(features, *self._leaves[0][1:])

    def teacher(self, student: Output, labels: Tensor) -> Taught:
        """The teacher's outputs; of all images at once where its batch norm has to see them."""
        teacher, T = self._run.teacher, len(self._views.crops[0])
        if not _works(teacher) or normalises(teacher):
            with self._run.autocast(), self._all.of(T):
                return _taught(self._run, self._views, student, labels)
        found, random = [], _random_state(self._run.device)
        for part in self._parts:
            _set_random_state(self._run.device, random)
            views = Views([crops[:, part] for crops in self._views.crops], self._views.pairs)
            seen = Output(student.features[:, part], student.z[:, part], student.p[:, part])
            with self._run.autocast(), self._draws(part).of(T):
                found.append(_taught(self._run, views, seen, labels[part]))
        tokens = [its for _, its in found if its is not None]
        return torch.cat([outputs for outputs, _ in found], 1), torch.cat(tokens, 1) if tokens else None

    def backward(self, objective: Tensor, gradients: AveragedGradients) -> None:
        """Add the gradient of `objective` to the weights."""
        random = _random_state(self._run.device)
        with gradients.averaging():
            objective.backward()
            for group, leaves in zip(self._groups, self._leaves, strict=True):
                group.backward(
                    [_gradient(leaf) for leaf in leaves], gradients, last=group is self._groups[-1]
                )
        _set_random_state(self._run.device, random)

    def _draws(self, part: slice) -> WholeBatchDraws:
        images = slice(self._first + part.start, self._first + part.stop)
        return WholeBatchDraws(self._run.spec.train.batch_size, images)


def _gradient(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None, "the objective depends on features and tokens"
    return leaf.grad


class _Group:
    """What the student's backbone gives for the crops of one size, in parts."""

    def __init__(
        self,
        run: Run,
        crops: Tensor,
        parts: list[slice],
        draws: Callable[[slice], WholeBatchDraws],
        *,
        tokens: bool,
    ) -> None:
        self._run, self._crops, self._parts, self._draws = run, crops, parts, draws
        self._tokens = tokens
        self._norms = NormalisedParts()
        self._random: list[Tensor]

    @torch.no_grad()
    def encode(self) -> Encoded:
        """Features and tokens of all images; no activation is kept."""
        self._random, before = _random_state(self._run.device), self._buffers()
        while True:
            found = [encoded for _, encoded in self._encoded(before)]
            if not self._norms.settle():
                break
        self._norms.move_running()
        whole = [encoded for encoded in found if encoded is not None]
        return tuple(torch.cat(parts, 1) for parts in zip(*whole, strict=True))

    def backward(self, asked: Sequence[Tensor], gradients: AveragedGradients, *, last: bool) -> None:
        """Add what the weights get from the gradients of what `encode` gave."""
        after = self._buffers()
        for number in reversed(self._norms.layers):
            with self._norms.asking(number) as statistics:
                owed = torch.zeros_like(statistics)
                for part, encoded in self._encoded(after):
                    outputs, weights = self._outputs(encoded, [gradient[:, part] for gradient in asked])
                    (found,) = torch.autograd.grad(outputs, [statistics], weights)
                    owed += found
            self._norms.answer(number, owed)
        for part, encoded in self._encoded(after):
            with (
                nullcontext() if last and part is self._parts[-1] else gradients.adding_up(),
                drawing_again(self._run, self._draws(part)),
            ):
                torch.autograd.backward(*self._outputs(encoded, [gradient[:, part] for gradient in asked]))
        self._put_back(after)

    def _outputs(self, encoded: Encoded | None, asked: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What is differentiated of a part, and the gradients of that."""
        assert encoded is not None, "all statistics are known"
        outputs, gradients = zip(*zip(encoded, asked, strict=True), *self._norms.terms, strict=True)
        return list(outputs), list(gradients)

    def _encoded(self, buffers: list[Tensor]) -> Iterator[tuple[slice, Encoded | None]]:
        """Each part and what the backbone gives for its images, None where statistics were missing.

        Each time with the same random numbers and buffers, which then have moved as in one pass.
        """
        for part in self._parts:
            self._put_back(buffers)
            _set_random_state(self._run.device, self._random)
            encoded = None
            with self._norms.part(), self._run.autocast(), self._draws(part).of(len(self._crops)):
                encoded = self._run.student.encode_views(self._crops[:, part], tokens=self._tokens)
            yield part, encoded

    def _buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self._run.student.backbone.buffers()]

    @torch.no_grad()
    def _put_back(self, buffers: list[Tensor]) -> None:
        for buffer, value in zip(self._run.student.backbone.buffers(), buffers, strict=True):
            buffer.copy_(value)


def drawing_again(run: Run, draws: WholeBatchDraws) -> AbstractContextManager[None]:
    """Around a backward pass, in which blocks that kept no activations are computed again."""
    return draws.of(None) if run.spec.train.gradient_checkpointing else nullcontext()


def normalises(part: object) -> bool:
    """Whether a part has batch norm that uses the statistics of the batch."""
    modules = part.modules() if isinstance(part, nn.Module) else ()
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training for module in modules)


def _works(teacher: object) -> bool:
    """Whether a teacher has something to compute, and is not the student or the labels."""
    return isinstance(teacher, nn.Module) and any(True for _ in teacher.parameters())


def _encode(student: Network, views: Views, draws: WholeBatchDraws) -> Encoded:
    """Features [S, b, D] of crops [V, b, C, H, W] by size, and tokens of the first size, if it has any."""
    encoded = []
    for i, group in enumerate(views.crops):
        with draws.of(len(group)):
            encoded.append(student.encode_views(group, tokens=i == 0))
    return torch.cat([found[0] for found in encoded]), *encoded[0][1:]


def _random_state(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
