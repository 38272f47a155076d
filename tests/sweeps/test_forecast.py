"""How long a sweep is said to take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_lab.errors import SpecError
from dino_lab.registry import registry
from dino_lab.spec.model import Spec
from dino_lab.sweeps.plan import forecast as module
from dino_lab.sweeps.plan.forecast import Measured, forecast
from dino_lab.sweeps.plan.plan import Plan, load_plan

CPU = torch.device("cpu")


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Callable[[str], Plan]:
    def make(text: str) -> Plan:
        file = tmp_path / "s.yaml"
        file.write_text(f"base: tiny.yaml\nmetric: knn.5nn\n{text}\n")
        return load_plan(file, (), registry, runs=tmp_path / "runs")

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Depths that were measured; each epoch takes as many seconds as the network is deep."""
    depths: list[int] = []

    def measure(specs: Sequence[Spec], *_: Any) -> Measured:
        backbone: Any = specs[0].backbone
        depths.append(backbone.depth)
        return Measured(float(backbone.depth * specs[0].train.epochs), ("knn.5nn", "loss"))

    monkeypatch.setattr(module, "measure", measure)
    return depths


def ask(plan: Plan, at_once: int = 1, chosen: int = 0) -> module.Forecast:
    stacks = [[trial] for trial in plan.trials]
    return forecast(plan, stacks, chosen, at_once, registry, CPU, lambda spec: None)


def test_each_kind_of_trial_is_measured_once(plan: Callable[[str], Plan], seen: list[int]) -> None:
    baseline = "baseline: {backbone.depth: 1, train.epochs: 1, targets.momentum: 0}"
    grid = "grid: {backbone.depth: [1, 4], train.epochs: [1, 2], targets.momentum: [0, 0.9]}"
    found = ask(plan(f"{grid}\n{baseline}"))
    assert seen == [1, 4]
    assert found.kinds == 2
    assert found.each == [1, 1, 2, 2, 4, 4, 8, 8]
    assert found.whole == 30


def test_trials_that_run_side_by_side(plan: Callable[[str], Plan], seen: list[int]) -> None:
    three = plan("grid: {backbone.depth: [2, 3, 4]}\nset: {train.epochs: 1}")
    assert ask(three, at_once=2).whole == 6  # 2 and then 4 beside 3
    assert ask(three, at_once=8).whole == 4
    assert ask(three, at_once=1, chosen=2).whole == 15  # two more of mean length


def test_a_later_kind_that_fails_is_for_its_trial_to_say(
    plan: Callable[[str], Plan], seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = module.measure

    def fails(specs: Sequence[Spec], *given: Any) -> Measured:
        if specs[0].backbone.depth == 3:
            raise MemoryError
        return measure(specs, *given)

    monkeypatch.setattr(module, "measure", fails)
    found = ask(plan("grid: {backbone.depth: [2, 3, 4]}\nset: {train.epochs: 1}"))
    assert found.each == [2, 3, 4]  # the mean of 2 and 4
    assert found.kinds == 2


def test_it_does_not_measure_for_long(
    plan: Callable[[str], Plan], seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.0)
    found = ask(plan("grid: {backbone.depth: [2, 3, 4]}\nset: {train.epochs: 1}"))
    assert seen == [2]
    assert found.each == [2, 2, 2]


def test_a_metric_that_no_row_has_is_told(plan: Callable[[str], Plan], seen: list[int]) -> None:
    good = plan("grid: {backbone.depth: [2]}")
    wrong = replace(good, sweep=good.sweep.model_copy(update={"metric": "knn.6nn"}))
    with pytest.raises(SpecError, match=r"no evaluator reports 'knn.6nn'; did you mean 'knn.5nn'"):
        ask(wrong)


def test_the_estimate_of_a_real_trial(plan: Callable[[str], Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 600.0)  # however busy the machine is
    found = ask(plan("grid: {backbone.depth: [1, 2]}\nset: {train.epochs: 1}"))
    assert found.kinds == 2
    assert all(0 < seconds < 60 for seconds in found.each)
