"""A linear layer is the same, whichever library multiplies."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.kernels import linear as module
from dino_lab.kernels.linear import FasterLinear, linear, mkl_lags, use_faster_linear
from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def lagging(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """On every processor as on one where convolutions are faster, for the smallest of layers; their calls."""
    calls: list[int] = []
    original = F.conv2d

    def counted(*given: Tensor, **options: Any) -> Tensor:
        calls.append(1)
        return original(*given, **options)

    monkeypatch.setattr(module, "mkl_lags", lambda: True)
    monkeypatch.setattr(module, "LEAST", 1)
    monkeypatch.setattr(F, "conv2d", counted)
    return calls


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (2, 3, 4, 7), (1, 7), (9, 1)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sliced", [True, False])
def test_values_and_gradients(shape: tuple[int, ...], bias: bool, sliced: bool, lagging: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=generator).requires_grad_()
    whole = torch.randn(10, shape[-1], generator=generator).requires_grad_()
    offset = torch.randn(6, generator=generator).requires_grad_() if bias else None
    weight = whole[4:] if sliced else whole[:6].clone()
    y = linear(x, weight, offset)
    leaves = [x, whole, *([] if offset is None else [offset])]
    weights = torch.randn(y.shape, generator=generator)
    found = torch.autograd.grad((y * weights).sum(), leaves)
    # Written out, in float64.
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = torch.einsum("...i,oi->...o", wide[0], wide[1][4:] if sliced else wide[1][:6])
    expected = expected + wide[2] if bias else expected
    wanted = torch.autograd.grad((expected * weights).sum(), wide)
    assert lagging
    assert y.is_contiguous()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


def test_what_takes_the_plain_way(lagging: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert linear(x.to("meta"), weight.to("meta")).device.type == "meta"
    monkeypatch.setattr(module, "LEAST", 25)
    linear(x, weight)
    assert not lagging
    monkeypatch.setattr(module, "LEAST", 24)
    linear(x, weight)
    assert lagging


def test_layers_of_a_network_change_in_nothing_else(lagging: list[int]) -> None:
    class Special(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Special(4, 4), nn.Linear(4, 2, bias=False))
    before = copy.deepcopy(network)
    use_faster_linear(network, CPU)
    assert [type(part) for part in network] == [FasterLinear, nn.ReLU, Special, FasterLinear]
    assert network.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(5, 3)
    torch.testing.assert_close(network(x), before(x))
    torch.testing.assert_close(copy.deepcopy(network)(x), before(x))
    assert len(lagging) == 4
    use_faster_linear(before, torch.device("meta"))
    assert type(before[0]) is nn.Linear


@pytest.mark.filterwarnings("ignore:`torch.jit.*is deprecated:FutureWarning")
def test_what_is_exported_is_a_linear_layer(lagging: list[int]) -> None:
    network = nn.Sequential(nn.Linear(3, 4))
    use_faster_linear(network, CPU)
    traced = torch.jit.trace(network, torch.randn(5, 3), check_trace=False)
    assert "aten::linear" in str(traced.inlined_graph)
    program = torch.export.export(network, (torch.randn(5, 3),))
    assert "aten.linear" in str(program.graph)
    assert not lagging
    torch.jit.save(traced, io.BytesIO())


def test_other_processors_keep_their_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for amd, capability in ((False, "AVX512"), (True, "AVX2")):
        mkl_lags.cache_clear()
        monkeypatch.setattr(module, "_is_amd", lambda amd=amd: amd)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        assert not mkl_lags()
        network = nn.Sequential(nn.Linear(3, 4))
        use_faster_linear(network, CPU)
        assert type(network[0]) is nn.Linear
    mkl_lags.cache_clear()


def test_networks_of_a_run_take_the_faster_way(tiny_spec: Callable[..., Any], lagging: list[int]) -> None:
    for teacher in ("{name: ema}", "{name: frozen}"):
        run = build(tiny_spec(f"teacher={teacher}"), registry, CPU)
        plain = [
            name
            for part in (run.student, run.teacher)
            for name, m in part.named_modules()
            if type(m) is nn.Linear
        ]
        assert not plain
        lagging.clear()
        next(train(run))
        assert len(lagging) > 20
