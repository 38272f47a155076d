from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.components.heads.linear import LinearHead
from dino_lab.components.heads.mlp import Mlp
from dino_lab.components.heads.prototypes import Prototypes
from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.targets.center import Center


def features() -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def prototypes(**changes: object) -> Prototypes:
    return Prototypes(6, **{"dim": 9, "hidden": 8, "bottleneck": 4, **changes}).double()


def naive_prototypes(head: Prototypes, x: Tensor) -> list[list[float]]:
    """Appendix C of the paper: linear, GELU, ..., linear, unit length, weight-normalised linear."""
    linears = [module for module in head.mlp if isinstance(module, nn.Linear)]
    rows = []
    for vector in x.tolist():
        for i, linear in enumerate(linears):
            vector = [
                sum(w * v for w, v in zip(row, vector, strict=True)) + bias
                for row, bias in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
            ]
            if i < len(linears) - 1:
                vector = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in vector]
        length = math.hypot(*vector)
        gains = [1.0] * head.dim if head.last_layer.gain is None else head.last_layer.gain[:, 0].tolist()
        rows.append(
            [
                gain * sum(w * v for w, v in zip(row, vector, strict=True)) / math.hypot(*row) / length
                for gain, row in zip(gains, head.last_layer.weight.tolist(), strict=True)
            ]
        )
    return rows


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_prototypes_are_the_formula(layers: int, norm_last_layer: bool) -> None:
    head = prototypes(layers=layers, norm_last_layer=norm_last_layer)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    expected = torch.tensor(naive_prototypes(head, features()), dtype=torch.float64)
    torch.testing.assert_close(head(features()), expected, rtol=1e-10, atol=1e-12)
    assert sum(isinstance(module, nn.Linear) for module in head.mlp) == layers


def test_outputs_are_cosines_while_the_gain_is_fixed() -> None:
    head = prototypes()
    assert head(features()).abs().max() <= 1
    assert [name for name, _ in head.last_layer.named_parameters()] == ["weight"]
    with torch.no_grad():
        before = head(features())
        head.last_layer.weight.mul_(7)
        torch.testing.assert_close(head(features()), before)


def test_a_free_gain_starts_at_one_and_is_learned() -> None:
    head = prototypes(norm_last_layer=False)
    assert torch.equal(head.last_layer.gain, torch.ones(9, 1, dtype=torch.float64))
    head(features()).square().sum().backward()
    assert head.last_layer.gain.grad.abs().sum() > 0


@pytest.mark.parametrize(("hidden", "std"), [(2048, 0.02), (128, 0.08)])
def test_prototypes_start_as_in_dino_and_wider_where_the_head_is_narrower(hidden: int, std: float) -> None:
    head = Prototypes(192, dim=512, hidden=hidden, bottleneck=64, layers=2)
    assert head.last_layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    for linear in (module for module in head.mlp if isinstance(module, nn.Linear)):
        assert linear.weight.std().item() == pytest.approx(std, rel=0.1)
        assert linear.bias.abs().max() == 0


def test_prototypes_copy_and_load() -> None:
    head = prototypes(norm_last_layer=False)
    twin, other = copy.deepcopy(head), prototypes(norm_last_layer=False)
    other.load_state_dict(head.state_dict())
    assert torch.equal(twin(features()), head(features()))
    assert torch.equal(other(features()), head(features()))
    with torch.no_grad():
        head.last_layer.weight.zero_()
    assert not torch.equal(twin.last_layer.weight, head.last_layer.weight)


def test_prototypes_are_normalised_by_batch_before_each_gelu() -> None:
    kinds = [type(module) for module in prototypes(batch_norm=True).mlp]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear, nn.BatchNorm1d, nn.GELU, nn.Linear]


def test_prototypes_of_swav_have_relu() -> None:
    head = prototypes(activation="relu", layers=2, batch_norm=True)
    first, norm, _, second = head.mlp
    x = standardised(features() @ first.weight.T) * norm.weight + norm.bias
    x = x.clamp(min=0) @ second.weight.T
    expected = F.normalize(x, dim=1) @ F.normalize(head.last_layer.weight, dim=1).T
    torch.testing.assert_close(head(features()), expected)


@pytest.mark.parametrize("layers", [2, 3])
def test_mlp_is_the_formula(layers: int) -> None:
    head = Mlp(6, hidden=8, dim=3, layers=layers).double()
    x = features()
    linears = [module for module in head.layers if isinstance(module, nn.Linear)]
    for linear in linears[:-1]:
        x = x @ linear.weight.T
        x = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
        x = x.clamp(min=0)
    torch.testing.assert_close(head(features()), x @ linears[-1].weight.T + linears[-1].bias)
    assert len(linears) == layers
    assert [linear.bias is None for linear in linears] == [True] * (layers - 1) + [False]


def test_mlp_without_batch_norm_keeps_its_biases() -> None:
    head = Mlp(6, hidden=8, dim=3, batch_norm=False)
    assert [type(module) for module in head.layers] == [nn.Linear, nn.ReLU, nn.Linear]
    assert head.layers[0].bias is not None


@pytest.mark.parametrize("kind", ["plain", "scale", "affine"])
def test_mlp_with_a_batch_norm_behind_its_output_is_the_formula(kind: Any) -> None:
    head = Mlp(6, hidden=8, dim=3, output_batch_norm=kind).double()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.requires_grad:
                parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    first, inner, _, last, outer = head.layers
    hidden = standardised(features() @ first.weight.T) * inner.weight + inner.bias
    expected = standardised(hidden.clamp(min=0) @ last.weight.T)
    if kind != "plain":
        expected = expected * outer.weight + (outer.bias if kind == "affine" else 0)
    torch.testing.assert_close(head(features()), expected)
    learned = [name for name, p in head.layers[4].named_parameters() if p.requires_grad]
    assert learned == {"plain": [], "scale": ["weight"], "affine": ["weight", "bias"]}[kind]


def standardised(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


@pytest.mark.parametrize(("norm", "asked", "has"), [("none", False, False), ("plain", True, False)])
def test_mlp_may_have_no_bias_at_its_output(norm: Any, asked: bool, has: bool) -> None:
    head = Mlp(6, hidden=8, dim=3, output_batch_norm=norm, output_bias=asked)
    assert (head.layers[3].bias is not None) is has


def test_linear_is_one_matrix() -> None:
    head = LinearHead(6, dim=3).double()
    assert head.dim == 3
    expected = features() @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(head(features()), expected)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_loss_starts_near_ln_k(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    head = Prototypes(64, dim=1024, hidden=256, bottleneck=256)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        z = head(torch.randn(4 * 8, 64)).float().unflatten(0, (4, 8))  # [S, B, K]
    target = Center(1024)(z[:2].detach(), 0.0)
    loss = CrossEntropy(1024)(z, target, 1 - torch.eye(4, 2, dtype=torch.int8))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1024), rel=0.1)
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
