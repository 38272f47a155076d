"""Weights rounded at once: the numbers of autocast, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.heads.prototypes import Prototypes
from dino_lab.kernels import gpu
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.testing.traffic import META, counted
from dino_lab.training.build import build


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    head = Prototypes(24, dim=16, hidden=16, bottleneck=8)
    return Network(Vit(3, 16, width=24, depth=2, heads=2, patch=4, train_patches=False), head)


def results(network: Network, sizes: list[int]) -> list[Tensor]:
    """Output, and gradients of all weights."""
    generator = torch.Generator().manual_seed(1)
    crops = [torch.rand(2, 3, 3, size, size, generator=generator) for size in sizes]
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(crops)
    out.z.float().square().sum().backward()
    return [out.features, out.z, *(p.grad for p in network.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_autocast(network: Network, checkpointing: bool) -> None:
    plain = results(copy.deepcopy(network), [16])
    network.rounded_to = torch.bfloat16
    if checkpointing:
        network.backbone.model.set_grad_checkpointing()
    rounded = results(network, [16])
    assert len(rounded) == len(plain) > 30
    assert all(torch.equal(a, b) for a, b in zip(rounded, plain, strict=True))
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_of_several_sizes_gradients_differ_by_rounding_alone(network: Network) -> None:
    plain = results(copy.deepcopy(network), [16, 8])
    network.rounded_to = torch.bfloat16
    torch.testing.assert_close(results(network, [16, 8]), plain, rtol=2e-2, atol=1e-3)


def test_weights_that_are_no_factors_are_left_alone() -> None:
    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = {name: p.dtype for name, p in network.named_parameters()}
            return x

    network = Network(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten()), Seen())
    network.predictor = Prototypes(4, dim=3, hidden=4, bottleneck=2, layers=1)
    network.rounded_to = torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        network([torch.rand(1, 2, 3, 1, 1)])
    lower = {name for name, dtype in network.head.seen.items() if dtype == torch.bfloat16}
    assert lower == {
        f"{layer}.{w}" for layer in ("backbone.0", "predictor.mlp.0") for w in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["train.precision=bfloat16"], torch.bfloat16),
        (["train.precision=bfloat16", "train.accumulate=2"], None),
        (["train.precision=float32"], None),
    ],
)
def test_networks_round_their_weights_where_launches_take_time(
    settings: list[str], expected: torch.dtype | None, tiny_spec: Callable
) -> None:
    assert build(tiny_spec(*settings), registry, torch.device("cpu")).student.rounded_to is None
    with counted():
        run = build(tiny_spec(*settings, "evaluators=[]"), registry, META)
    assert run.student.rounded_to == expected
    assert run.network("teacher").rounded_to == expected


def test_a_network_without_products_stays_as_it_is() -> None:
    network = Network(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), nn.Identity())
    network.rounded_to = torch.bfloat16
    assert network([torch.rand(1, 2, 3, 1, 1)]).z.dtype == torch.float32


def test_a_compiled_network_is_one_graph_of_all_sizes_and_steps(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: weights that were rounded, tokens of all sizes together, and stochastic depth."""
    monkeypatch.setattr(gpu, "launches_take_time", lambda device: True)
    for block in network.backbone.model.blocks:
        block.drop_path1 = DropPath(0.5)
    network.rounded_to = torch.bfloat16
    counter = CompileCounterWithBackend("aot_eager")
    network.compile(backend=counter, fullgraph=True)
    for _ in range(3):
        found = results(network, [16, 8])
        assert all(part.isfinite().all() for part in found)
        torch._foreach_add_([p.detach() for p in network.parameters()], 0.01)
    assert counter.frame_count == 1
