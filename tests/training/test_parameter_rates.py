"""Layer-wise decay of the rate, the patch embedding's own rate, and parameters frozen by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dino_lab.building.check import check
from dino_lab.building.parameters import freeze, rate_factors
from dino_lab.errors import Misfit
from dino_lab.network import Network
from dino_lab.registry import registry
from dino_lab.schedule import constant
from dino_lab.spec.model import Sgd
from dino_lab.training.build import build
from dino_lab.training.optimizer import load_optimizer, make_optimizer, set_rates

CPU = torch.device("cpu")


def student(name: str = "vit", **params: Any) -> Network:
    given = params or {"width": 8, "depth": 2, "heads": 1, "patch": 4}
    backbone = registry.build("backbone", registry.find("backbone", name).params(name=name, **given), 3, 8)
    return Network(backbone, nn.Linear(backbone.dim, 3))


def sgd(**settings: Any) -> Sgd:
    quiet = {
        "lr": constant(0.1),
        "lr_scaling": {"rule": "none"},
        "weight_decay": constant(0.0),
        "momentum": 0.0,
    }
    return Sgd(name="sgd", **quiet | settings)


# Two blocks: heads and the last norm have layer 3, the blocks 2 and 1, what comes before them 0.
LAYERS = {
    "model.cls_token": 0,
    "model.pos_embed": 0,
    "model.patch_embed.proj.weight": 0,
    "model.blocks.0.attn.qkv.weight": 1,
    "model.blocks.0.mlp.fc2.bias": 1,
    "model.blocks.1.norm1.weight": 2,
    "model.norm.weight": 3,
}


@pytest.mark.parametrize("decay", [0.5, 0.75])
def test_a_step_is_as_long_as_the_layer_says(decay: float) -> None:
    network = student()
    optim = sgd(layer_decay=decay, patch_embed_lr=0.2)
    optimizer = make_optimizer(optim, network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    assert set_rates(optimizer, optim, 256, 0.5)[0] == 0.1
    optimizer.step()
    after = dict(network.named_parameters())
    for name, layer in LAYERS.items():
        rate = 0.1 * decay ** (3 - layer) * (0.2 if "patch_embed" in name else 1)
        torch.testing.assert_close(
            before[f"backbone.{name}"] - after[f"backbone.{name}"],
            torch.full_like(before[f"backbone.{name}"], rate),
            rtol=1e-4,
            atol=1e-7,
        )
    torch.testing.assert_close(before["head.weight"] - after["head.weight"], torch.full((3, 8), 0.1))


@pytest.mark.parametrize(
    ("name", "params", "layers"),
    [
        (
            "timm",
            {"model": "resnet18"},
            {"model.conv1.weight": 5, "model.layer1.0.conv1.weight": 4, "model.layer4.1.bn2.bias": 1},
        ),
        (
            "timm",
            {"model": "convnext_atto"},
            {"model.stem.0.weight": 5, "model.stages.0.blocks.0.gamma": 4, "model.head.norm.weight": 0},
        ),
    ],
)
def test_stages_of_other_backbones_are_layers(
    name: str, params: dict[str, Any], layers: dict[str, int]
) -> None:
    network = student(name, **params)
    factors = rate_factors(sgd(layer_decay=0.5), network)
    named = dict(network.backbone.named_parameters())
    for its, below in layers.items():
        assert factors[id(named[its])] == 0.5**below, its


def test_without_these_settings_groups_are_those_of_before(tiny_spec: Callable) -> None:
    network = build(tiny_spec(), registry, CPU).student
    groups = make_optimizer(tiny_spec().optim, network).param_groups
    keys = [(group["decays"], group["last_layer"], group["predictor"]) for group in groups]
    assert len(set(keys)) == len(keys) == 3
    assert {(group["rate"], group["frozen_until"]) for group in groups} == {(1.0, 0.0)}


def test_a_state_of_before_is_put_back() -> None:
    network, optim = student(), sgd(momentum=0.9)
    optimizer = make_optimizer(optim, network)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    set_rates(optimizer, optim, 256, 0.5)
    optimizer.step()
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        del group["rate"], group["frozen_until"]
    again = make_optimizer(optim, network)
    load_optimizer(again, network, state)
    set_rates(again, optim, 256, 0.5)
    again.step()
    for p in network.parameters():
        torch.testing.assert_close(again.state[p]["momentum_buffer"], torch.full_like(p, 1.9))


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        (("backbone.model.blocks.0",), {"backbone.model.blocks.0."}),
        (("backbone.model.blocks.[01].norm?", "head"), {"norm1", "norm2", "head."}),
        (("*.bias",), {".bias"}),
        (("backbone.model.cls_token",), {"cls_token"}),
    ],
)
def test_parameters_are_frozen_by_name(patterns: tuple[str, ...], frozen: set[str]) -> None:
    network = student()
    freeze(network, patterns)
    for name, parameter in network.named_parameters():
        expected = any(part in name for part in frozen) and not (
            "norm?" in patterns[0] and ("backbone.model.norm" in name)
        )
        assert parameter.requires_grad is not expected, name


def test_frozen_parameters_stay_what_they_were(tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec("optim.freeze=[backbone.model.blocks.0, backbone.model.patch_embed]", "train.epochs=1")
    first = build(spec, registry, CPU).student.state_dict()
    last = torch.load(execute(spec).folder / "last.pt", weights_only=True)["student"]
    for name, value in first.items():
        held = name.startswith(("backbone.model.blocks.0.", "backbone.model.patch_embed.", "mean", "std"))
        if name.startswith("backbone.") or held:
            assert torch.equal(last[name], value) is held, name
    assert build(tiny_spec(), registry, CPU).spec.hash != spec.hash


@pytest.mark.parametrize(
    ("settings", "loc", "message"),
    [
        ("optim.freeze=[blocks.9]", ("optim", "freeze", 0), "no parameter has a name like 'blocks.9'"),
        ("optim.freeze=['*']", ("optim", "freeze"), "every parameter is frozen"),
        (
            "optim.patch_embed_lr=0.2 backbone={name: resnet}",
            ("optim", "patch_embed_lr"),
            "has no patch embedding",
        ),
    ],
)
def test_settings_that_do_not_fit_are_told_at_their_key(
    settings: str, loc: tuple[Any, ...], message: str, tiny_spec: Callable
) -> None:
    given = settings.split(" ", 1) if "backbone" in settings else [settings]
    with pytest.raises(Misfit) as caught:
        check(tiny_spec(*given), registry)
    assert caught.value.loc == loc
    assert message in caught.value.message


def test_a_backbone_without_blocks_has_no_layers() -> None:
    network = Network(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(Misfit, match="the backbone, Linear, has no blocks that are numbered"):
        rate_factors(sgd(layer_decay=0.9), network)
    assert set(rate_factors(sgd(), network).values()) == {1.0}
