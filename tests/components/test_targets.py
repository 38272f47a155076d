from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dino_lab import collectives
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.identity import Identity
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


@pytest.mark.parametrize("targets", [Center(4), Softmax(4)], ids=["center", "softmax"])
def test_targets_are_distributions_even_of_large_outputs(targets: Center | Softmax) -> None:
    assert targets.distribution
    target = targets(outputs().float() * 1e4, 0.0)
    torch.testing.assert_close(target.sum(-1), torch.ones(2, 3))
    assert target.min() >= 0


def test_no_gradient_flows_through_the_center() -> None:
    teacher = outputs().requires_grad_()
    assert not Center(4).double()(teacher, 0.0).requires_grad


def test_identity_is_the_output_as_it_is() -> None:
    targets = Identity(4)
    assert targets(teacher := outputs(), 0.0) is teacher
    assert not targets.distribution
