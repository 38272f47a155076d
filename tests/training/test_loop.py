from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dino_lab.registry import registry
from dino_lab.training.build import build
from dino_lab.training.loop import NonFinite, train

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
