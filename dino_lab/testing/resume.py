"""A run of two steps, and the same run stopped in between."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dino_lab.testing.tested_component import TestedComponent
from dino_lab.training.build import Run
from dino_lab.training.loop import train


def check_run(subject: TestedComponent) -> None:
    """Two steps move the student, leave the teacher without gradient, and can be stopped in between."""
    whole, resumed = subject.run(), subject.run()
    before = _tensors(whole.student.state_dict())
    _evaluate(whole)  # which must not change the run: the resumed one does without
    _step(subject, whole, 0)
    saved = io.BytesIO()
    torch.save(whole.state_dict(), saved)
    saved.seek(0)
    _step(subject, whole, 1)
    moved = _tensors(whole.student.state_dict())
    subject.expect(
        any(not torch.equal(before[key], moved[key]) for key in before),
        "two steps of training do not move the student; a gradient should reach it",
    )
    network: Any = whole.teacher.network
    subject.expect(
        network is None or all(parameter.grad is None for parameter in network.parameters()),
        "a gradient reaches the teacher's network; it should be made under torch.no_grad()",
    )
    resumed.load_state_dict(torch.load(saved, weights_only=True))
    _step(subject, resumed, 1)
    _expect_same(subject, whole, resumed)
    _step(subject, replace(whole, spec=subject.spec("train.precision=bfloat16")), 2)


def _step(subject: TestedComponent, run: Run, step: int) -> None:
    with subject.trying(f"a training step in {run.spec.train.precision}", "a run with it should go through"):
        next(train(run, step))


def _evaluate(run: Run) -> list[dict[str, float]]:
    return [scored.scores for scored in run.evaluate(list(run.evaluators.items()))]


def _expect_same(subject: TestedComponent, whole: Run, resumed: Run) -> None:
    one, other = _tensors(whole.state_dict()), _tensors(resumed.state_dict())
    different = [key for key in one if key not in other or not torch.equal(one[key], other[key])]
    subject.expect(
        not different,
        f"a run that is stopped after the first step and resumed ends with another {(different or [''])[0]}; "
        "what changes should be a buffer or a parameter, and random numbers come from the run's generators",
    )
    subject.expect(
        _evaluate(whole) == _evaluate(resumed),
        "the same weights get other scores in a resumed run; they should depend on features and data alone",
    )


def _tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state, by its dotted name."""
    if isinstance(state, Tensor):
        return {prefix.lstrip("."): state.clone()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, value in items for k, v in _tensors(value, f"{prefix}.{key}").items()}
