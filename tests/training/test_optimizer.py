from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dino_lab.components.heads.prototypes import Prototypes
from dino_lab.network import Network
from dino_lab.schedule import Schedule, constant
from dino_lab.spec.model import AdamW, Clip, Lars, LrScaling, Sgd
from dino_lab.training.optimizer import LarsOptimizer, clip_gradients, make_optimizer, set_rates


class Head(nn.Module):
    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last_layer = nn.Linear(4, 5)


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


@pytest.mark.parametrize(
    "optim",
    [
        AdamW(name="adamw", lr=constant(0.1), freeze_last_layer=0.25),
        Sgd(name="sgd", lr=constant(0.1), freeze_last_layer=0.25),
        Lars(name="lars", lr=constant(0.1), freeze_last_layer=0.25),
    ],
    ids=lambda optim: optim.name,
)
def test_the_first_free_step_of_the_last_layer_is_that_of_a_new_optimizer(optim: AdamW | Sgd | Lars) -> None:
    """Regression: moments and the count of steps ran on while the layer was frozen."""
    torch.manual_seed(0)
    held, fresh = student(), student()
    fresh.load_state_dict(held.state_dict())
    optimizer, new = make_optimizer(optim, held), make_optimizer(optim, fresh)
    for progress in (0.0, 0.1, 0.2, 0.25):
        for p in held.parameters():
            p.grad = torch.randn_like(p)
        set_rates(optimizer, optim, 256, progress)
        optimizer.step()
        last = {p for group in optimizer.param_groups if group["last_layer"] for p in group["params"]}
        assert last == set(held.head.last_layer.parameters())
        assert all((p in optimizer.state) is (progress == 0.25) for p in last), progress
    for p, q in zip(fresh.head.parameters(), held.head.parameters(), strict=True):
        p.grad = q.grad
    set_rates(new, optim, 256, 0.25)
    new.step()
    for p, q in zip(fresh.head.last_layer.parameters(), held.head.last_layer.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_first_free_step_of_adam_has_the_length_of_the_rate() -> None:
    """Kingma and Ba, Alg. 1: at t = 1 the corrected moments are g and g^2, so w moves by lr * sign(g)."""
    network = student()
    optim = AdamW(name="adamw", lr=constant(0.1), weight_decay=constant(0.0), freeze_last_layer=0.5)
    optimizer = make_optimizer(optim, network)
    layer = network.head.last_layer
    before = layer.weight.clone()
    for progress in (0.0, 0.25, 0.5):
        layer.weight.grad = torch.full_like(layer.weight, 3.0 if progress < 0.5 else -0.01)
        set_rates(optimizer, optim, 256, progress)
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before + 0.1, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gain", [False, True])
def test_the_last_layer_of_prototypes_is_frozen_whole_and_its_gain_decays(gain: bool) -> None:
    """As weight_g does in DINO's code, which excludes biases and 1-D tensors only."""
    network = Network(nn.Identity(), Prototypes(4, dim=6, hidden=5, bottleneck=3, norm_last_layer=not gain))
    optim = AdamW(name="adamw", weight_decay=constant(0.3), freeze_last_layer=0.5)
    optimizer = make_optimizer(optim, network)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    set_rates(optimizer, optim, 256, 0.0)
    frozen = [name for name, p in network.named_parameters() if p.grad is None]
    assert frozen == ["head.last_layer.weight", *["head.last_layer.gain"] * gain]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decay[id(p)] for p in network.head.last_layer.parameters()} == {0.3}


def test_the_rate_of_the_predictor_may_stay() -> None:
    network = Network(nn.Linear(4, 4), Head(), nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)))
    lr = Schedule(start=0.2, end=0.0, shape="cosine", warmup=0.1)
    for stays in (False, True):
        optim = Sgd(name="sgd", lr=lr, constant_predictor_lr=stays)
        optimizer = make_optimizer(optim, network)
        assert set_rates(optimizer, optim, 128, 0.5)[0] == pytest.approx(lr(0.5) / 2)
        rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for name, p in network.named_parameters():
            held = stays and name.startswith("predictor.")
            assert rate[id(p)] == pytest.approx(0.1 if held else lr(0.5) / 2), name


def test_defaults_are_those_of_the_papers() -> None:
    """SimCLR, arXiv 2002.05709, Sec. 2.3: 0.3, 1e-6, 10 of 100 epochs. SimSiam, arXiv 2011.10566, Sec. 3."""
    lars, sgd = Lars(name="lars"), Sgd(name="sgd")
    assert [lars.lr(x) for x in (0.0, 0.05, 0.1, 0.55, 1.0)] == pytest.approx([0, 0.15, 0.3, 0.15, 0])
    assert (lars.weight_decay(0.5), lars.momentum, lars.clip) == (1e-6, 0.9, None)
    assert [sgd.lr(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([0.05, 0.025, 0])
    assert (sgd.weight_decay(0.5), sgd.momentum, sgd.clip) == (1e-4, 0.9, None)
    assert lars.lr_scaling.factor(4096) * 0.3 == pytest.approx(4.8)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (1.0, 0.9), (-0.1, 0.9)])
def test_betas_that_torch_refuses_are_refused(betas: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="beta"):
        torch.optim.AdamW([nn.Parameter(torch.zeros(1))], betas=betas)
    with pytest.raises(ValidationError, match="betas"):
        AdamW(name="adamw", betas=betas)


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


def test_lars_is_algorithm_1() -> None:
    """arXiv 1708.03888: the local rate is trust * |w| / (|g| + decay * |w|), the learning rate may change."""
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 4).double()), nn.Parameter(torch.randn(4).double())
    optimizer = LarsOptimizer([{"params": [weight, bias]}], lr=0.5, momentum=0.9, trust_coefficient=0.01)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    w, v = weight.detach().clone(), torch.zeros(3, 4).double()
    b, u = bias.detach().clone(), torch.zeros(4).double()
    for lr in (0.5, 0.2, 0.7):
        optimizer.param_groups[0]["lr"] = lr
        weight.grad, bias.grad = torch.randn(3, 4).double(), torch.randn(4).double()
        local = 0.01 * w.norm() / (weight.grad.norm() + 0.1 * w.norm())
        v = 0.9 * v + lr * local * (weight.grad + 0.1 * w)
        w = w - v
        u = 0.9 * u + lr * (bias.grad + 0.1 * b)
        b = b - u
        optimizer.step()
    torch.testing.assert_close(weight.detach(), w, rtol=1e-12, atol=0)
    torch.testing.assert_close(bias.detach(), b, rtol=1e-12, atol=0)


def test_lars_moves_weights_that_are_zero_and_leaves_nan_to_others() -> None:
    zero, idle = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LarsOptimizer([{"params": [zero, idle]}], lr=0.5, momentum=0.9, trust_coefficient=0.01)
    zero.grad, idle.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.5))
    assert torch.equal(idle.detach(), torch.ones(2, 2))


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
