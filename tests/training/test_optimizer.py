from __future__ import annotations

import pytest
import torch
from torch import nn

from dino_lab.network import Network
from dino_lab.schedule import Schedule, constant
from dino_lab.spec.model import AdamW, Clip, Lars, LrScaling, Sgd
from dino_lab.training.lars import LarsOptimizer
from dino_lab.training.optimizer import clip_gradients, make_optimizer, set_rates


class Head(nn.Module):
    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last_layer = nn.Linear(4, 5, bias=False)


def student() -> Network:
    return Network(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), Head())


def gradients(sizes: list[float]) -> list[nn.Parameter]:
    parameters = []
    for size in sizes:
        p = nn.Parameter(torch.zeros(3))
        p.grad = torch.full((3,), size)
        parameters.append(p)
    return parameters


def test_biases_norms_and_no_other_tensors_escape_weight_decay() -> None:
    network = student()
    optimizer = make_optimizer(AdamW(name="adamw"), network)
    set_rates(optimizer, AdamW(name="adamw", weight_decay=constant(0.3)), 256, 0.5)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in network.named_parameters():
        assert decay[id(p)] == (0.3 if p.ndim > 1 else 0.0), name


def test_the_last_layer_is_held_still_and_then_let_go() -> None:
    network = student()
    optim = AdamW(name="adamw", lr=constant(0.1), freeze_last_layer=0.25)
    optimizer = make_optimizer(optim, network)
    before = network.head.last_layer.weight.clone()
    moved = []
    for progress in (0.0, 0.24, 0.25):
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        set_rates(optimizer, optim, 256, progress)
        optimizer.step()
        moved.append(not torch.equal(before, network.head.last_layer.weight))
    assert moved == [False, False, True]
    assert not torch.equal(network.head.first.weight, student().head.first.weight)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 0.25), ("sqrt", 0.5)])
def test_the_scaling_rule_moves_the_start_and_not_the_floor(rule: str, factor: float) -> None:
    optim = Sgd(name="sgd", lr=Schedule(start=1.0, end=0.1), lr_scaling=LrScaling(rule=rule, reference=256))
    optimizer = make_optimizer(optim, student())
    assert set_rates(optimizer, optim, 64, 0.0)[0] == pytest.approx(factor)
    assert set_rates(optimizer, optim, 64, 1.0)[0] == pytest.approx(0.1)


def test_a_constant_rate_is_scaled_throughout() -> None:
    optim = Sgd(name="sgd", lr=constant(1.0))
    assert set_rates(make_optimizer(optim, student()), optim, 128, 0.7)[0] == pytest.approx(0.5)


def test_clipping_per_tensor_leaves_small_gradients_alone() -> None:
    parameters = gradients([10.0, 0.1])
    total = clip_gradients(parameters, Clip(norm=1.0, per="tensor"))
    assert total.item() == pytest.approx((3 * 10.0**2 + 3 * 0.1**2) ** 0.5)
    assert parameters[0].grad.norm().item() == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(parameters[1].grad, torch.full((3,), 0.1))


def test_clipping_of_all_equals_torch() -> None:
    ours, theirs = gradients([10.0, 0.1]), gradients([10.0, 0.1])
    clip_gradients(ours, Clip(norm=1.0, per="all"))
    nn.utils.clip_grad_norm_(theirs, 1.0)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_lars_is_the_formula() -> None:
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4).double()), nn.Parameter(torch.randn(4).double())
    optimizer = LarsOptimizer([{"params": [weight, bias]}], lr=0.5, momentum=0.9, trust_coefficient=0.01)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    w, v = weight.detach().clone(), torch.zeros(3, 4).double()
    b, u = bias.detach().clone(), torch.zeros(4).double()
    for _ in range(3):
        weight.grad, bias.grad = torch.randn(3, 4).double(), torch.randn(4).double()
        step = weight.grad + 0.1 * w
        v = 0.9 * v + 0.01 * w.norm() / step.norm() * step
        w = w - 0.5 * v
        u = 0.9 * u + bias.grad + 0.1 * b
        b = b - 0.5 * u
        optimizer.step()
    torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=0)
    torch.testing.assert_close(bias.detach(), b, rtol=1e-12, atol=0)


@pytest.mark.parametrize("optim", [AdamW(name="adamw"), Sgd(name="sgd"), Lars(name="lars")])
def test_every_optimizer_goes_downhill(optim: AdamW | Sgd | Lars) -> None:
    network = student()
    optim = optim.model_copy(update={"lr": constant(0.05)})
    optimizer = make_optimizer(optim, network)
    x = torch.randn(16, 4)
    losses = []
    for _ in range(10):
        loss = (network.backbone[0](x) - 1).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        set_rates(optimizer, optim, 256, 0.0)
        optimizer.step()
    assert losses[-1] < losses[0]
