"""Every method on several processes, and in parts, computes what one process computes on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.testing.ranks import on_processes
from dino_lab.training.build import build
from dino_lab.training.loop import train

pytestmark = pytest.mark.usefixtures("checked_once")

METHODS = sorted((Path(__file__).parents[2] / "experiments" / "methods").glob("*.yaml"))
# A batch of 7 is divided as 4 + 3, as 3 + 2 + 2, and in parts of 4 + 3 and 2 + 2 + 2 + 1.
SMALL = (
    "data.train_images=28",
    "data.test_images=12",
    "backbone.width=24",
    "backbone.depth=1",
    "backbone.drop_path=0.2",
    "train.batch_size=7",
    # AdamW divides a gradient by its own size, and where it should be 0 there is rounding alone.
    "optim={name: sgd, lr: 0.02, lr_scaling: {rule: none}, clip: {norm: 3.0}}",
    "train.epochs=1",
    "train.log_every=1",
    "evaluators=[]",
)
STEPS = 3
Trained = dict[str, Tensor]


def trained(method: Path, *settings: str) -> Trained:
    """Numbers of three rows, the last gradients, and all state after them, in float64."""
    spec = load(method, (*SMALL, *settings)).spec
    if spec.augment.name == "multicrop":
        # Positions of another size are interpolated in float32, by timm.
        spec = load(method, (*SMALL, "augment.local_size=32", *settings)).spec
    run = build(spec, registry, torch.device("cpu"))
    parts: tuple[Any, ...] = (run.student, run.teacher, run.targets, run.loss, run.token_objective)
    parts += tuple(run.regularizers.values())
    for part in parts:
        if isinstance(part, nn.Module):
            part.double()
    found: Trained = {}
    rows = train(run)
    for step in range(STEPS):
        for name, value in next(rows).numbers.items():
            found[f"row {step}: {name}"] = torch.tensor(value, dtype=torch.float64)
    found |= dict(_flat(run.state_dict()))
    for name, parameter in run.student.named_parameters():
        if parameter.grad is not None:
            found[f"gradient: {name}"] = parameter.grad
    return found


def _flat(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        yield name, state
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for key, value in items:
        yield from _flat(value, f"{name}.{key}")


def expect_equal(found: Trained, wanted: Trained) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        if value.numel():
            difference = (found[name].double() - value.double()).abs().max().item()
            assert difference <= tolerance(name) * max(1.0, value.abs().max().item()), (name, difference)


def tolerance(name: str) -> float:
    return 1e-7 if name.endswith("accuracy") else 1e-10  # a mean in float32


@pytest.fixture(scope="module")
def whole(checked_once: None) -> dict[str, Trained]:
    torch.set_num_threads(1)
    return {file.stem: trained(file) for file in METHODS}


@pytest.fixture(scope="module", params=[2, 3])
def divided(request: pytest.FixtureRequest, whole: dict[str, Trained]) -> list[dict[str, Trained]]:
    """Of each process the results of all methods, whose specs were checked for `whole`."""
    return on_processes(request.param, lambda: {file.stem: trained(file) for file in METHODS}, seconds=600)


@pytest.mark.parametrize("name", [file.stem for file in METHODS])
def test_processes_compute_what_one_does(
    name: str, divided: list[dict[str, Trained]], whole: dict[str, Trained]
) -> None:
    for rank in divided:
        expect_equal(rank[name], whole[name])
    for rank in divided[1:]:
        for key, value in divided[0][name].items():
            assert torch.equal(rank[name][key], value), key


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("method", METHODS, ids=lambda file: file.stem)
def test_parts_compute_what_the_whole_batch_does(method: Path, parts: int, whole: dict[str, Trained]) -> None:
    expect_equal(trained(method, f"train.accumulate={parts}"), whole[method.stem])


DINO = METHODS[0].with_name("dino.yaml")
OTHERS = {
    "three layers of batch norm in the backbone": ("backbone.patch=16",),
    "a teacher that uses running statistics": ("teacher.mode=eval", "teacher.buffers=ema"),
    "blocks that are computed again": ("backbone.stem=patches", "train.gradient_checkpointing=true"),
    "AdamW": ("optim={name: adamw, lr: 1e-3, clip: {norm: 3.0, per: tensor}}", "head.batch_norm=false"),
}


@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS.keys())
def test_parts_on_processes_compute_what_one_does(settings: tuple[str, ...]) -> None:
    wanted = trained(DINO, *settings)
    for rank in on_processes(2, lambda: trained(DINO, *settings, "train.accumulate=2")):
        expect_equal(rank, wanted)
