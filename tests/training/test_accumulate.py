"""A batch in parts gives the loss, the gradient and the state of the whole batch, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_methods import METHODS
from torch import Tensor

from dino_lab.building.check import check
from dino_lab.errors import Misfit
from dino_lab.registry import registry
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train

CPU = torch.device("cpu")
EXACT = {
    name: settings for name, settings in METHODS.items() if "accumulated" not in name and "resnet" not in name
}


def one_step(spec: Any) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Numbers, gradients, and buffers of targets and loss, of the first step in float64."""
    run: Run = build(spec, registry, CPU)
    parts = (run.student, run.teacher, run.targets, run.loss, run.token_objective)
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    for module in modules:
        module.double()
    row = next(train(run))
    gradients = {name: p.grad for name, p in run.student.named_parameters() if p.grad is not None}
    state = {f"{i} {name}": value for i, m in enumerate(modules[2:]) for name, value in m.named_buffers()}
    return row.numbers, gradients, state


@pytest.mark.parametrize("settings", EXACT.values(), ids=EXACT.keys())
def test_parts_are_the_whole(settings: list[str], tiny_spec: Callable) -> None:
    def step(parts: int) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
        own = ("train.log_every=1", "optim.clip=null", f"train.accumulate={parts}")
        return one_step(tiny_spec(*settings, *own))

    whole = step(1)
    for parts in (2, 4, 24):  # of the last each is one image
        numbers, gradients, state = step(parts)
        for name, value in whole[0].items():
            assert numbers[name] == pytest.approx(value, rel=1e-7, abs=1e-7), name
        assert gradients.keys() == whole[1].keys()
        for name, gradient in whole[1].items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-7, atol=1e-8)
        for name, value in whole[2].items():
            torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10)


def test_a_pass_in_parts_moves_no_buffer_twice(tiny_spec: Callable) -> None:
    """Dropout of the second pass is that of the first: else the gradient is that of another network."""
    settings = ("backbone.drop_path=0.5", "train.accumulate=3", "train.log_every=1", "optim.clip=null")
    run = build(tiny_spec(*settings), registry, CPU)
    seen: list[Tensor] = []
    run.student.backbone.register_forward_hook(lambda _, __, out: seen.append(out.detach().clone()))
    next(train(run))
    sizes = len(run.augment.groups)
    first, second = seen[: 3 * sizes], seen[3 * sizes :]
    assert len(second) == 3 * sizes
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["backbone={name: timm, model: test_resnet}"], "the backbone has 15 layers of batch norm"),
        (["train.accumulate=25"], "a batch of 24 has no so many parts"),
    ],
)
def test_many_layers_of_batch_norm_in_parts_are_refused(
    settings: list[str], message: str, tiny_spec: Callable
) -> None:
    with pytest.raises(Misfit, match=message) as caught:
        check(tiny_spec("train.accumulate=4", *settings), registry)
    assert caught.value.loc == ("train", "accumulate")


@pytest.mark.parametrize("key", ["compile", "gradient_checkpointing"])
def test_what_goes_without_batch_norm_in_parts_is_refused(key: str, tiny_spec: Callable) -> None:
    settings = ("train.accumulate=4", "backbone.stem=convolutions", f"train.{key}=true")
    with pytest.raises(Misfit, match="and batch norm go without it") as caught:
        check(tiny_spec(*settings), registry)
    assert caught.value.loc == ("train", key)
