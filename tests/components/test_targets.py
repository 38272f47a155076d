from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dino_lab import collectives
from dino_lab.components.targets.batch_softmax import BatchSoftmax
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.identity import Identity
from dino_lab.components.targets.sinkhorn import Sinkhorn
from dino_lab.components.targets.softmax import Softmax
from dino_lab.schedule import Schedule, constant


def outputs(seed: int = 0) -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 10


def naive_softmax(row: list[float], center: list[float], temperature: float) -> list[float]:
    powers = [math.exp((value - c) / temperature) for value, c in zip(row, center, strict=True)]
    return [power / sum(powers) for power in powers]


def naive_target(teacher: Tensor, center: list[float], temperature: float) -> Tensor:
    rows = [[naive_softmax(row, center, temperature) for row in view] for view in teacher.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def test_center_is_used_and_then_updated() -> None:
    targets = Center(
        4, temperature=Schedule(start=0.04, end=0.08), momentum=Schedule(start=0.9, end=0.5)
    ).double()
    center = [0.0] * 4
    for step in range(4):
        teacher, progress = outputs(step), step / 4
        target = targets(teacher, progress)
        expected = naive_target(teacher, center, 0.04 + 0.04 * progress)
        torch.testing.assert_close(target, expected, rtol=1e-10, atol=1e-12)
        rows = [row for view in teacher.tolist() for row in view]
        momentum = 0.9 - 0.4 * progress
        center = [
            momentum * c + (1 - momentum) * sum(row[k] for row in rows) / len(rows)
            for k, c in enumerate(center)
        ]
        torch.testing.assert_close(targets.mean.tolist(), center, rtol=1e-10, atol=1e-12)


def test_center_stays_in_evaluation_mode() -> None:
    targets = Center(4).double()
    targets(outputs(), 0.0)
    before = targets.mean.clone()
    targets.eval()(outputs(1), 0.0)
    assert torch.equal(targets.mean, before)
    assert before.abs().max() > 0


def test_the_centre_is_in_the_state_dict() -> None:
    """Regression: a centre outside the state_dict starts at 0 again after every resumption."""
    targets, other = Center(4).double(), Center(4).double()
    targets(outputs(), 0.0)
    assert "mean" in targets.state_dict()
    other.load_state_dict(targets.state_dict())
    assert torch.equal(other(outputs(1), 0.0), targets(outputs(1), 0.0))
    assert not torch.equal(other(outputs(1), 0.0), Center(4).double()(outputs(1), 0.0))


def test_center_uses_the_batches_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "mean", lambda x: x + 1)
    targets = Center(4, momentum=constant(0.0)).double()
    targets(outputs(), 0.0)
    torch.testing.assert_close(targets.mean, outputs().mean((0, 1)) + 1)


def test_defaults_are_those_of_dino() -> None:
    targets = Center(4)
    assert [targets.temperature(x) for x in (0.0, 1.0)] == [0.04, 0.04]
    assert [targets.momentum(x) for x in (0.0, 1.0)] == [0.9, 0.9]
    assert torch.equal(targets.mean, torch.zeros(4))


def test_softmax_is_the_formula() -> None:
    targets = Softmax(4, temperature=Schedule(start=0.04, end=0.08))
    expected = naive_target(outputs(), [0.0] * 4, 0.06)
    torch.testing.assert_close(targets(outputs(), 0.5), expected, rtol=1e-10, atol=1e-12)


DISTRIBUTIONS = {
    "center": Center(4),
    "softmax": Softmax(4),
    "sinkhorn": Sinkhorn(4),
    "joint sinkhorn": Sinkhorn(4, joint=True),
    "batch softmax": BatchSoftmax(4),
}


@pytest.mark.parametrize("targets", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS.keys())
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8])
def test_targets_are_distributions_even_of_large_outputs(
    targets: Center | Softmax | Sinkhorn | BatchSoftmax, scale: float
) -> None:
    assert targets.distribution
    teacher = outputs().float() * scale
    teacher[1] = teacher[0]  # rows that are the same
    teacher[0, 1] -= 100 * scale  # a row and a column that are nothing beside the others
    teacher[:, :, 2] -= 100 * scale
    target = targets(teacher, 0.0)
    assert target.isfinite().all()
    torch.testing.assert_close(target.sum(-1), torch.ones(2, 3))
    assert target.min() >= 0


def test_center_without_temperature_is_the_centred_output() -> None:
    targets = Center(4, temperature=None, momentum=constant(0.5)).double()
    assert not targets.distribution
    targets(outputs(0), 0.0)
    center = outputs(0).mean((0, 1)) / 2
    torch.testing.assert_close(targets(outputs(1), 0.0), outputs(1) - center, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(targets.mean, center / 2 + outputs(1).mean((0, 1)) / 2)


def naive_sinkhorn(rows: list[list[float]], temperature: float, iterations: int) -> list[list[float]]:
    """exp, then as often as asked: divide each column by its sum, then each row by its sum."""
    rows = [[math.exp(value / temperature) for value in row] for row in rows]
    for _ in range(iterations):
        columns = [math.fsum(row[k] for row in rows) for k in range(len(rows[0]))]
        rows = [[value / total for value, total in zip(row, columns, strict=True)] for row in rows]
        rows = [[value / math.fsum(row) for value in row] for row in rows]
    return rows


def assert_relatively_close(found: Tensor, wanted: list[object]) -> None:
    expected = torch.tensor(wanted, dtype=torch.float64).view_as(found)
    assert expected.min() > 0
    assert ((found - expected).abs() / expected).max() < 1e-6


SIZES = [(2, 3, 4), (1, 2, 5), (2, 2, 2), (3, 7, 1), (2, 8, 3)]


def normal(size: tuple[int, int, int], duplicates: bool) -> Tensor:
    teacher = torch.randn(size, generator=torch.Generator().manual_seed(sum(size)), dtype=torch.float64)
    if duplicates:
        teacher[:, 1] = teacher[:, 0]
    return teacher


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("joint", [False, True])
def test_sinkhorn_is_the_formula(
    size: tuple[int, int, int], duplicates: bool, iterations: int, joint: bool
) -> None:
    teacher = normal(size, duplicates)
    targets = Sinkhorn(size[2], temperature=Schedule(start=0.1, end=0.3), iterations=iterations, joint=joint)
    views = teacher.tolist()
    groups = [[row for view in views for row in view]] if joint else views
    expected = [naive_sinkhorn(group, 0.2, iterations) for group in groups]
    assert_relatively_close(targets(teacher, 0.5), expected)


def test_sinkhorn_balances_the_outputs() -> None:
    teacher = normal((2, 12, 4), False)
    for joint in (False, True):
        target = Sinkhorn(4, iterations=500, temperature=constant(0.5), joint=joint)(teacher, 0.0)
        shares = target.sum((0, 1))[None] / 2 if joint else target.sum(1)
        torch.testing.assert_close(shares, torch.full_like(shares, 3.0), rtol=1e-6, atol=0)


def test_sinkhorn_starts_from_the_exponential() -> None:
    """Regression: started from a softmax it is another thing after three iterations."""
    teacher = normal((1, 4, 3), False)
    wrong = naive_sinkhorn(((teacher[0] / 0.5).softmax(-1).log()).tolist(), 1.0, 3)
    right = Sinkhorn(3, temperature=constant(0.5))(teacher, 0.0)
    assert (right[0] - torch.tensor(wrong, dtype=torch.float64)).abs().max() > 0.01


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("duplicates", [False, True])
def test_batch_softmax_is_the_formula(size: tuple[int, int, int], duplicates: bool) -> None:
    teacher = normal(size, duplicates)
    views = []
    for view in teacher.tolist():
        columns = [naive_softmax([row[k] for row in view], [0.0] * size[1], 0.2) for k in range(size[2])]
        rows = [[column[i] for column in columns] for i in range(size[1])]
        views.append([[value / math.fsum(row) for value in row] for row in rows])
    targets = BatchSoftmax(size[2], temperature=Schedule(start=0.1, end=0.3))
    assert_relatively_close(targets(teacher, 0.5), views)


def test_defaults_of_sinkhorn_are_those_of_swav() -> None:
    targets = Sinkhorn(4)
    assert (targets.temperature(0.5), targets.iterations, targets.joint) == (0.05, 3, False)


@pytest.mark.parametrize("targets", [Sinkhorn(4), BatchSoftmax(4)], ids=["sinkhorn", "batch softmax"])
def test_no_gradient_flows_through_a_balanced_assignment(targets: Sinkhorn | BatchSoftmax) -> None:
    assert not targets(outputs().requires_grad_(), 0.0).requires_grad
    assert not targets.state_dict()


def test_no_gradient_flows_through_the_center() -> None:
    teacher = outputs().requires_grad_()
    assert not Center(4).double()(teacher, 0.0).requires_grad


def test_identity_is_the_output_as_it_is() -> None:
    targets = Identity(4)
    assert targets(teacher := outputs(), 0.0) is teacher
    assert not targets.distribution
