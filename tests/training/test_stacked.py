"""Runs that are trained together become what they become alone, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_lab.registry import registry
from dino_lab.training.build import Run, build
from dino_lab.training.loop import NonFinite, train
from dino_lab.training.stacked.loop import train_stacked

pytestmark = pytest.mark.usefixtures("checked_once")

CPU = torch.device("cpu")
STEPS = 3
MLP = "head={name: mlp, hidden: 32, dim: 16}"
OUTPUTS = (MLP, "targets={name: identity}", "optim.freeze_last_layer=0")
PREDICTOR = "predictor={name: mlp, hidden: 32, dim: 16}"
TWO_VIEWS = "augment={name: two_view, size: 16}"
BOTH_SIDES = "teacher={name: siamese, stop_gradient: false}"
# What all have, then what each of three runs has of its own.
PACKS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]] = {
    "dino, temperatures": (
        (),
        (("targets.temperature=0.02",), ("targets.temperature=0.07",), ("loss.temperature=0.2",)),
    ),
    "dino, seeds": ((), (("seed=1",), ("seed=2",), ("seed=3",))),
    "dino, momenta and rates": (
        ("head.batch_norm=true",),
        (
            ("teacher.momentum=0.5", "optim={name: adamw, lr: 0.01}"),
            ("targets.momentum=0.5", "optim.clip={norm: 0.1, per: all}"),
            ("optim.lr=0.05", "optim.freeze_last_layer=0.5"),
        ),
    ),
    "crops, targets and losses": (
        (),
        (
            ("augment.global_scale=[0.8, 1.0]",),
            ("targets={name: sinkhorn}",),
            ("targets={name: softmax}", "regularizers=[{name: koleo}]"),
        ),
    ),
    "teachers of several kinds": (
        (),
        (("teacher={name: frozen, mode: train}",), ("teacher={name: periodic, unit: step, lag: 1}",), ()),
    ),
    "teachers in several modes": (
        ("backbone={name: timm, model: test_resnet}",),
        (("teacher={name: ema, mode: eval, buffers: ema}",), ("teacher={name: ema}",), ("seed=1",)),
    ),
    "byol": (
        (*OUTPUTS, PREDICTOR, TWO_VIEWS, "loss={name: mse}", "optim={name: lars, lr: 0.05}"),
        (("seed=1",), ("teacher.momentum=0.5",), ("optim.lr=0.1",)),
    ),
    "moco": (
        (*OUTPUTS, "augment={name: asymmetric, size: 16, one_way: true, local_views: 1, local_size: 8}"),
        tuple((f"loss={{name: info_nce, in_batch: false, queue: {queue}}}",) for queue in (50, 24, 100)),
    ),
    "simclr and vicreg": (
        (*OUTPUTS, TWO_VIEWS, BOTH_SIDES),
        (("loss={name: info_nce}",), ("loss={name: vicreg}",), ("loss={name: vicreg}", "seed=1")),
    ),
    "resnet": (
        ("backbone={name: timm, model: test_resnet}", "teacher={name: ema, buffers: copy}"),
        (("seed=1",), ("optim.lr=0.01",), ("teacher.momentum=0.5",)),
    ),
}


def tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    if isinstance(state, Tensor):
        return {prefix: state.clone()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}.{key}").items()}


@pytest.fixture
def runs(tiny_spec: Callable[..., Any]) -> Callable[..., list[Run]]:
    def make(common: tuple[str, ...], own: tuple[tuple[str, ...], ...]) -> list[Run]:
        base = ("backbone={name: vit, width: 24, depth: 2, heads: 2, patch: 4}", "train.log_every=1")
        base += ("optim={name: sgd, lr: 0.1, clip: {norm: 3.0}}",)
        return [build(tiny_spec(*base, *common, *its), registry, CPU) for its in own]

    return make


@pytest.mark.parametrize(("common", "own"), PACKS.values(), ids=PACKS.keys())
def test_together_as_alone(
    runs: Callable[..., list[Run]], common: tuple[str, ...], own: tuple[tuple[str, ...], ...]
) -> None:
    alone, packed = runs(common, own), runs(common, own)
    together = train_stacked(packed)
    separate = [train(run) for run in alone]
    for step in range(STEPS):
        for row, wanted in zip(next(together), map(next, separate), strict=True):
            assert not isinstance(row, NonFinite)
            assert row.step == wanted.step
            assert row.numbers == pytest.approx(wanted.numbers, rel=2e-3, abs=1e-4)
            if step == 0:
                for name in ("loss", "gradient_norm"):
                    assert row.numbers[name] == pytest.approx(wanted.numbers[name], rel=1e-5)
    for run, wanted in zip(packed, alone, strict=True):
        before = tensors(build(run.spec, registry, CPU).state_dict())
        found, expected = tensors(run.state_dict()), tensors(wanted.state_dict())
        assert found.keys() == expected.keys()
        moved = 0
        for name, tensor in expected.items():
            # Adam makes steps of the rounding where a bias has no gradient.
            adam = run.spec.optim.name == "adamw"
            if name not in before or (adam and ("exp_avg" in name or tensor.ndim == 1)):
                continue
            if not torch.equal(before[name], tensor):
                moved += 1
                way = (tensor - before[name]).float().norm()
                error = (found[name] - tensor).float().norm()
                assert error <= 0.02 * way + 5e-5, (name, float(error), float(way))
        assert moved > 10
