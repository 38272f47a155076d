"""How networks are computed where launches take time, and as CUDA graphs: their numbers stay."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import nn

from dino_lab.building.check import check
from dino_lab.building.components import Misfit
from dino_lab.kernels import gpu, linear
from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_steps_are_those_of_a_cpu_where_launches_take_time(
    precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch, tiny_spec: Callable
) -> None:
    """Sizes together, and weights rounded at once; without random numbers, which are others there."""
    spec = tiny_spec(f"train.precision={precision}", "train.log_every=1", "backbone.drop_path=0")
    monkeypatch.setattr(linear, "mkl_lags", lambda: False)  # layers of a CPU are not rounded
    losses = []
    for takes_time in (False, True):
        monkeypatch.setattr(gpu, "launches_take_time", lambda device, answer=takes_time: answer)
        run = build(spec, registry, CPU)
        assert (run.student.rounded_to is not None) == (takes_time and precision == "bfloat16")
        losses.append([row.numbers["loss"] for row in islice(train(run), 4)])
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    assert losses[0][3] != pytest.approx(losses[0][0], rel=1e-4)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is compiled in which mode, and the beginnings of steps; nothing is compiled."""
    found: list[str] = []

    def compiled(self: nn.Module, *, mode: str) -> None:
        found.append(f"{type(self).__name__} {mode}")

    monkeypatch.setattr(nn.Module, "compile", compiled)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: found.append("step"))
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("false", []),
        ("true", ["Network default"] * 2),
        ("graphs", [*["Network reduce-overhead"] * 2, "step", "step", "step"]),
    ],
)
def test_both_networks_are_compiled_and_each_step_begins_once(
    value: str, expected: list[str], asked: list[str], tiny_spec: Callable
) -> None:
    list(islice(train(build(tiny_spec(f"train.compile={value}"), registry, CPU)), 3))
    assert asked == expected


def test_no_gradient_is_left_where_it_may_be_overwritten(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, tiny_spec: Callable
) -> None:
    run = build(tiny_spec("train.compile=graphs"), registry, CPU)
    left: list[int] = []
    monkeypatch.setattr(
        torch.compiler,
        "cudagraph_mark_step_begin",
        lambda: left.append(sum(p.grad is not None for p in run.student.parameters())),
    )
    list(islice(train(run), 2))
    assert left == [0, 0]


def test_graphs_of_parts_of_a_batch_are_refused(tiny_spec: Callable) -> None:
    with pytest.raises(Misfit, match="CUDA graphs are of whole batches") as caught:
        check(tiny_spec("train.compile=graphs", "train.accumulate=2"), registry)
    assert caught.value.loc == ("train", "compile")


@pytest.mark.slow
def test_numbers_stay_but_for_random_ones(tiny_spec: Callable) -> None:
    def weights(value: str) -> list[Any]:
        small = ("backbone={depth: 1, drop_path: 0}", "augment.local_views=0", "train.log_every=1")
        run = build(tiny_spec(f"train.compile={value}", *small), registry, CPU)
        rows = list(islice(train(run), 3))
        return [[row.numbers["loss"] for row in rows], *(p.detach() for p in run.parameters)]

    plain, graphs = weights("false"), weights("graphs")
    assert graphs[0] == pytest.approx(plain[0], rel=1e-4)
    torch.testing.assert_close(graphs[1:], plain[1:], rtol=1e-3, atol=1e-4)
