"""DINO written out from the paper's formulas, in plain Python numbers: no tensor, no broadcasting.

The network is a DINO head with one layer before the prototypes, u = A x + a, z_k = cos(u, W_k), so that its
gradient can be written out as well. Emerging Properties in Self-Supervised Vision Transformers,
arXiv 2104.14294: Eq. 1 to 4 and Algorithm 1; appendix C for the head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Vector = list[float]
Matrix = list[Vector]


@dataclass(frozen=True)
class Constants:
    """What a step depends on besides data and weights."""

    student_temperature: float
    teacher_temperature: float
    center_momentum: float
    teacher_momentum: float
    learning_rate: float


@dataclass(frozen=True)
class Head:
    """The weights of a network."""

    layer: Matrix  # [H][D + 1], the bias last
    prototypes: Matrix  # [K][H]


@dataclass(frozen=True)
class Step:
    """What is known after a step."""

    loss: float
    targets: list[Matrix]  # [T][B][K]
    center: Vector  # [K]
    student: Head
    teacher: Head


def softmax(logits: Vector, temperature: float) -> Vector:
    """Eq. 1."""
    powers = [math.exp(logit / temperature) for logit in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(x: Vector) -> Vector:
    return [value / math.hypot(*x) for value in x]


def outputs(head: Head, x: Vector) -> Vector:
    """Cosines of the bottleneck with the prototypes."""
    bottleneck = unit([dot(row, [*x, 1.0]) for row in head.layer])
    return [dot(unit(row), bottleneck) for row in head.prototypes]


def add_gradient(total: Head, head: Head, x: Vector, slopes: Vector) -> None:
    """Add sum_k slopes_k dz_k / dw to `total`, where d(u / |u|) = (du - (u / |u|) (u / |u|) . du) / |u|."""
    hidden = [dot(row, [*x, 1.0]) for row in head.layer]
    bottleneck = unit(hidden)
    for k, slope in enumerate(slopes):
        prototype = unit(head.prototypes[k])
        cosine = dot(prototype, bottleneck)
        for h in range(len(hidden)):
            along = (bottleneck[h] - cosine * prototype[h]) / math.hypot(*head.prototypes[k])
            total.prototypes[k][h] += slope * along
            into = (prototype[h] - cosine * bottleneck[h]) / math.hypot(*hidden)
            for d, value in enumerate([*x, 1.0]):
                total.layer[h][d] += slope * into * value


def combine(a: float, first: Head, b: float, second: Head) -> Head:
    """a * first + b * second."""

    def both(one: Matrix, two: Matrix) -> Matrix:
        return [[a * v + b * w for v, w in zip(*rows, strict=True)] for rows in zip(one, two, strict=True)]

    return Head(both(first.layer, second.layer), both(first.prototypes, second.prototypes))


def cosine_momentum(start: float, step: int, steps: int) -> float:
    """From `start` to 1 along a cosine (Sec. 3.1)."""
    return 1 - (1 - start) * (math.cos(math.pi * step / steps) + 1) / 2


def dino_step(
    student: Head, teacher: Head, center: Vector, views: Sequence[Matrix], constants: Constants
) -> Step:
    """One step of Algorithm 1 on views [S][B][D], of which the teacher sees the first two; SGD."""
    batch, dim = len(views[0]), len(center)
    targets: list[Matrix] = []
    raw: list[Vector] = []
    for view in views[:2]:
        rows = []
        for x in view:
            z = outputs(teacher, x)
            raw.append(z)
            centred = [value - c for value, c in zip(z, center, strict=True)]
            rows.append(softmax(centred, constants.teacher_temperature))
        targets.append(rows)

    terms: list[float] = []
    gradient = combine(0.0, student, 0.0, student)
    pairs = [(t, s) for t in range(2) for s in range(len(views)) if s != t]
    for t, s in pairs:
        for b in range(batch):
            x, q = views[s][b], targets[t][b]
            p = softmax(outputs(student, x), constants.student_temperature)
            terms.append(-math.fsum(q[k] * math.log(p[k]) for k in range(dim)))
            share = 1 / (constants.student_temperature * len(pairs) * batch)
            add_gradient(gradient, student, x, [share * (p[k] - q[k]) for k in range(dim)])

    mean = [math.fsum(z[k] for z in raw) / len(raw) for k in range(dim)]
    m = constants.center_momentum
    new_student = combine(1.0, student, -constants.learning_rate, gradient)
    momentum = constants.teacher_momentum
    return Step(
        loss=math.fsum(terms) / len(terms),
        targets=targets,
        center=[m * c + (1 - m) * value for c, value in zip(center, mean, strict=True)],
        student=new_student,
        teacher=combine(momentum, teacher, 1 - momentum, new_student),
    )
