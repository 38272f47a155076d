"""The package's DINO step beside the one of `dino_step.py`, on the same weights and crops."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino_lab.components.heads.prototypes import Prototypes
from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.targets.center import Center
from dino_lab.components.teachers.ema import Ema
from dino_lab.network import Network
from dino_lab.schedule import Schedule, constant
from dino_lab.types import Views
from reference.dino_step import Constants, Head, Matrix, Step, cosine_momentum, dino_step

STEPS, B, D, H, K = 4, 3, 6, 5, 7
STUDENT_TEMPERATURE, CENTER_MOMENTUM, LEARNING_RATE = 0.1, 0.9, 0.5
TEACHER_MOMENTUM, TEACHER_TEMPERATURE = 0.9, (0.04, 0.07)


class Pool(nn.Module):
    """Mean over pixels: crops of any size [N, D, H, W] to [N, D]."""

    dim = D

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def relative_errors(local_crops: int) -> dict[str, float]:
    """Largest |package - statement| / largest |statement| over four steps, by quantity, in float64."""
    generator = torch.Generator().manual_seed(local_crops)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = Head(normal(H, D + 1).tolist(), normal(K, H).tolist())
    batches = [[normal(2, B, D, 4, 4)] for _ in range(STEPS)]
    for crops in batches:
        crops += [normal(local_crops, B, D, 2, 2)] if local_crops else []
    stated, computed = statement(weights, batches), package(weights, batches)
    return {
        name: max(
            _relative(getattr(a, name), getattr(b, name)) for a, b in zip(computed, stated, strict=True)
        )
        for name in ("loss", "targets", "center", "student", "teacher")
    }


def _relative(computed: object, stated: object) -> float:
    a, b = _flat(computed), _flat(stated)
    return float((a - b).abs().max() / b.abs().max())


def _flat(value: object) -> Tensor:
    if isinstance(value, Head):
        return torch.cat([_flat(value.layer), _flat(value.prototypes)])
    return torch.as_tensor(value, dtype=torch.float64).flatten()


def statement(weights: Head, batches: list[list[Tensor]]) -> list[Step]:
    """Four steps of the written-out formulas."""
    student = teacher = weights
    center, steps = [0.0] * K, []
    for i, crops in enumerate(batches):
        views = [_pooled(view) for group in crops for view in group]
        low, high = TEACHER_TEMPERATURE
        constants = Constants(
            student_temperature=STUDENT_TEMPERATURE,
            teacher_temperature=low + (high - low) * i / STEPS,
            center_momentum=CENTER_MOMENTUM,
            teacher_momentum=cosine_momentum(TEACHER_MOMENTUM, i, STEPS),
            learning_rate=LEARNING_RATE,
        )
        step = dino_step(student, teacher, center, views, constants)
        student, teacher, center = step.student, step.teacher, step.center
        steps.append(step)
    return steps


def _pooled(view: Tensor) -> Matrix:
    """The mean over pixels, in plain numbers: [B, D, H, W] to [B][D]."""
    return [
        [sum(map(sum, plane)) / (len(plane) * len(plane[0])) for plane in image] for image in view.tolist()
    ]


def package(weights: Head, batches: list[list[Tensor]]) -> list[Step]:
    """Four steps of the package's network, teacher, targets and loss."""
    head = Prototypes(D, dim=K, layers=1, bottleneck=H)
    student = Network(Pool(), head).double()
    with torch.no_grad():
        layer = torch.tensor(weights.layer, dtype=torch.float64)
        head.mlp[0].weight.copy_(layer[:, :-1])
        head.mlp[0].bias.copy_(layer[:, -1])
        head.last_layer.weight.copy_(torch.tensor(weights.prototypes, dtype=torch.float64))
    low, high = TEACHER_TEMPERATURE
    teacher = Ema(student, momentum=Schedule(start=TEACHER_MOMENTUM, end=1.0, shape="cosine"))
    targets = Center(
        K, temperature=Schedule(start=low, end=high), momentum=constant(CENTER_MOMENTUM)
    ).double()
    loss = CrossEntropy(K, temperature=STUDENT_TEMPERATURE)
    optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE)
    steps = []
    for i, crops in enumerate(batches):
        count = sum(len(group) for group in crops)
        pairs = 1 - torch.eye(count, 2, dtype=torch.int8)
        optimizer.zero_grad()
        output = student(crops)
        target = targets(teacher(Views(crops, pairs), output, torch.zeros(B)), i / STEPS)
        value = loss(output.p, target, pairs)
        value.backward()
        optimizer.step()
        teacher.update(student, i / STEPS, False)
        steps.append(
            Step(
                loss=value.item(),
                targets=target.tolist(),
                center=targets.mean.tolist(),
                student=_weights(head),
                teacher=_weights(teacher.network.head),
            )
        )
    return steps


def _weights(head: nn.Module) -> Head:
    layer = torch.cat([head.mlp[0].weight, head.mlp[0].bias[:, None]], dim=1)
    return Head(layer.tolist(), head.last_layer.weight.tolist())
