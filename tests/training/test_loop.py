from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.training.build import build
from dino_lab.training.loop import NonFinite, train
from dino_lab.types import Output, Views

CPU = torch.device("cpu")


def test_no_gradient_reaches_the_teacher(tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    next(train(run))
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.student.parameters())


def test_a_loss_that_is_no_number_stops_before_the_weights_move(tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    before = [p.clone() for p in run.parameters]
    with torch.no_grad():
        run.targets.mean.fill_(float("nan"))
    with pytest.raises(NonFinite, match="nan at step 0"):
        next(train(run))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_a_failed_run_says_why(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("optim={name: sgd, lr: 1e30}", "augment.local_views=0"))
    assert outcome.status == "failed"
    assert "the loss is" in outcome.reason


def test_accumulated_gradients_are_those_of_the_whole_batch(tiny_spec: Callable) -> None:
    # Without crops that differ (one view, whole image) and batch statistics, parts add up to the whole.
    settings = (
        "augment={name: two_view, size: 16, scale: [1.0, 1.0], flip_probability: 0,"
        " jitter_probability: 0, grey_probability: 0, blur_probability: [0, 0], solarize_probability: [0, 0]}",
        "backbone.drop_path=0",
        "targets={name: softmax}",
    )
    norms = []
    for parts in (1, 3):
        run = build(tiny_spec(*settings, f"train.accumulate={parts}", "train.log_every=1"), registry, CPU)
        row = next(train(run))
        norms.append(row.numbers["gradient_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_uniform_collapse_stops_the_run_and_is_named(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(
        tiny_spec(
            "targets.temperature=50",
            "train={epochs: 6, batch_size: 24, log_every: 1, on_collapse: stop}",
        )
    )
    assert outcome.status == "collapsed"
    assert outcome.verdict.name == "collapsed to uniform"
    assert outcome.step < outcome.total
    assert "ln 32 = 3.466" in outcome.verdict.sentence


def test_bfloat16_stays_close_to_float32(tiny_spec: Callable) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        run = build(tiny_spec(f"train.precision={precision}", "train.log_every=1"), registry, CPU)
        losses.append(next(train(run)).numbers["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_regularizers_join_the_loss_by_their_weight(tiny_spec: Callable) -> None:
    """The gradient is the sum; the row has the loss and each term by itself."""

    def step(*settings: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        always = ("train.log_every=1", "optim.clip=null", "optim.freeze_last_layer=0")
        run = build(tiny_spec(*always, *settings), registry, CPU)
        row = next(train(run))
        return row.numbers, {name: p.grad for name, p in run.student.named_parameters()}

    plain, without = step()
    once, one = step("regularizers=[{name: koleo, weight: 0.5}]")
    both, two = step("regularizers=[{name: koleo, weight: 1.0}, {name: koleo, weight: 2.0, on: projections}]")
    idle, nothing = step("regularizers=[{name: koleo, weight: 0.0}]")
    assert plain["loss"] == once["loss"] == both["loss"] == idle["loss"]
    assert not [key for key in plain if key.startswith("regularizer")]
    assert once["regularizer.koleo"] == both["regularizer.koleo"] == idle["regularizer.koleo"]
    assert both["regularizer.koleo_2"] != both["regularizer.koleo"]
    assert all(torch.equal(without[name], nothing[name]) for name in without)
    _, only_second = step("regularizers=[{name: koleo, weight: 2.0, on: projections}]")
    for name, gradient in without.items():
        first, second = one[name] - gradient, only_second[name] - gradient
        torch.testing.assert_close(two[name], gradient + 2 * first + second, rtol=1e-3, atol=1e-5)
        if name.startswith("head"):
            assert torch.equal(one[name], gradient)  # of the backbone's features only
        elif name.endswith("attn.qkv.weight"):
            assert first.abs().sum() > 0


def test_a_regularizer_that_is_no_number_stops_before_the_weights_move(tiny_spec: Callable) -> None:
    run = build(tiny_spec("regularizers=[{name: koleo}]"), registry, CPU)
    before = [p.clone() for p in run.parameters]
    run.regularizers["regularizer.koleo"].weight = float("nan")
    with pytest.raises(NonFinite, match="nan at step 0"):
        next(train(run))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_a_regularizer_is_no_score(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("regularizers=[{name: koleo}]", "train.epochs=1"))
    assert {key.split(".")[0] for key in (*outcome.scores_before, *outcome.scores_after)} == {"knn"}
    assert "regularizer.koleo" in RunFolder(outcome.folder).rows()[-1]


def test_the_state_of_a_regularizer_is_the_runs(tiny_spec: Callable) -> None:
    class Counting(nn.Module):
        """Counts its calls."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = 1.0
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, views: Views, student: Output) -> Tensor:
            self.calls = self.calls + 1
            return student.features.float().mean()

    with registry.scratch():
        registry.register("regularizer", "counting")(Counting)
        spec = tiny_spec("regularizers=[{name: counting}]")
        run, other = (build(spec, registry, CPU) for _ in range(2))
        steps = train(run)
        next(steps), next(steps)
        state = run.state_dict()
        assert state["regularizer.counting"]["calls"] == 2
        other.load_state_dict(state)
        assert other.regularizers["regularizer.counting"].calls == 2


def test_rows_have_what_the_loss_measures(tiny_spec: Callable) -> None:
    """Only where a row is written, and before the loss changes its state."""

    class Stateful(nn.Module):
        """Measures how often it was called."""

        negatives = cross_entropy = False

        def __init__(self, dim: int) -> None:
            super().__init__()
            self.calls = self.measured = 0

        def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
            self.calls += 1
            return student.square().mean()

        def measure(self, student: Tensor, target: Tensor, pairs: Tensor) -> dict[str, Tensor]:
            assert not torch.is_grad_enabled()
            self.measured += 1
            return {"calls_before": torch.tensor(float(self.calls))}

    with registry.scratch():
        registry.register("loss", "stateful")(Stateful)
        run = build(tiny_spec("loss={name: stateful}"), registry, CPU)  # a row every second step
        steps = train(run)
        rows = [next(steps).numbers for _ in range(4)]
    assert [row.get("calls_before") for row in rows] == [None, 1, None, 3]
    assert (run.loss.calls, run.loss.measured) == (4, 2)


def test_a_row_says_how_much_of_the_time_images_were_waited_for(
    tiny_spec: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(tiny_spec("train.log_every=1"), registry, CPU)
    quick = run.data.train

    def slow(batch_size: int, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in quick(batch_size, seed, start):
            time.sleep(0.05)
            yield batch

    waited = next(train(run)).waited
    monkeypatch.setattr(run.data, "train", slow)
    rows = train(run)
    assert all(next(rows).waited >= 0.05 for _ in range(2))
    assert 0 <= waited < 0.05


def test_data_wait_is_a_share(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec("train.epochs=1"))
    shares = [row["data_wait"] for row in RunFolder(outcome.folder).rows() if row["step"]]
    assert shares
    assert all(0 < share < 1 for share in shares)
