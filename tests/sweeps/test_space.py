"""Values of a space: within their bounds, under conditions that are checked; and what replaces what."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dino_lab.errors import SpecError
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.spec.nodes import data
from dino_lab.sweeps.plan.model import Distribution
from dino_lab.sweeps.plan.plan import Plan, load_plan
from dino_lab.sweeps.plan.space import value_at

Make = Callable[..., Plan]
PLACES = [0.0, 1e-9, 0.25, 0.5, 0.77777, 1 - 1e-12, 1.0]
TARGETS = "targets: {choice: [{name: center}, {name: sinkhorn}]}"


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Make:
    def make(text: str, *settings: str) -> Plan:
        file = tmp_path / "s.yaml"
        file.write_text(f"base: tiny.yaml\nmetric: knn.5nn\n{text}\n")
        return load_plan(file, settings, registry, runs=tmp_path / "runs")

    return make


def mistakes(plan: Make, text: str, *settings: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        plan(text, *settings)
    return [line.rpartition("/")[2] for line in str(caught.value).splitlines()]


def value(place: float, **said: Any) -> Any:
    node = yaml.compose(yaml.safe_dump(said))
    return data(value_at(Distribution(**said), node, place))


@pytest.mark.parametrize("ends", [(0.1, 0.10001), (100.0, 101.0), (1e-4, 1e-2), (0.99995, 0.99996)])
@pytest.mark.parametrize("name", ["uniform", "log_uniform"])
def test_a_drawn_number_is_within_its_range_and_near_its_place(name: str, ends: tuple[float, float]) -> None:
    low, high = ends
    for place in PLACES:
        found = value(place, **{name: ends})
        assert low <= found <= high
        share = (
            (found - low) / (high - low)
            if name == "uniform"
            else math.log(found / low) / math.log(high / low)
        )
        assert share == pytest.approx(place, abs=2e-3)
    assert value(0.5, uniform=(0.2, 0.8)) == 0.5
    assert value(0.123456, uniform=(0.0, 1.0)) == 0.1235  # four digits where they are enough


def test_whole_numbers_come_as_often_as_they_should() -> None:
    grid = [(i + 0.5) / 6000 for i in range(6000)]
    drawn = [value(place, int_uniform=(3, 5)) for place in grid]
    assert [drawn.count(n) for n in (3, 4, 5)] == [2000] * 3
    assert all(type(n) is int for n in drawn)
    assert [value(place, int_uniform=(-2, 7)) for place in (0.0, 1.0)] == [-2, 7]
    drawn = [value(place, log_int_uniform=(1, 4)) for place in grid]
    for n in (1, 2, 3, 4):  # the share of [n - 1/2, n + 1/2] in [1/2, 9/2] by logarithm
        wanted = math.log((n + 0.5) / (n - 0.5)) / math.log(4.5 / 0.5)
        assert drawn.count(n) / 6000 == pytest.approx(wanted, abs=1e-3)
    assert [value(place, log_int_uniform=(8, 4096)) for place in (0.0, 1.0)] == [8, 4096]


def test_whole_numbers_in_a_plan(plan: Make) -> None:
    made = plan("random: {samples: 8}\nspace: {backbone.depth: {int_uniform: [1, 2]}}")
    assert {trial.spec.backbone.depth for trial in made.trials} == {1, 2}  # type: ignore[attr-defined]
    (line,) = mistakes(plan, "random: {samples: 1}\nspace: {backbone.depth: {log_int_uniform: [0, 2]}}")
    assert "log_int_uniform needs numbers greater than 0" in line
    (line,) = mistakes(plan, "random: {samples: 1}\nspace: {backbone.depth: {int_uniform: [1, 2.5]}}")
    assert "must be a whole number" in line


@pytest.mark.parametrize(
    "text",
    [
        "grid: {optim.lr: [0.001, 0.01], optim.name: [adamw, sgd]}",
        "grid: {optim.name: [adamw, sgd], optim.lr: [0.001, 0.01]}",
        "random: {samples: 6}\nspace: {optim.lr: {choice: [0.001, 0.01]}, optim.name: {choice: [adamw, sgd]}}",
    ],
)
def test_a_key_before_the_name_of_its_component_is_kept(plan: Make, text: str) -> None:
    made = plan(text)
    by_label = {trial.label.removesuffix(" seed 0"): trial.spec for trial in made.trials}
    arms = [arm for arm in made.study.arms if arm.settings]
    assert len(arms) == 4
    for arm in arms:
        optim = by_label[arm.label].optim
        assert (optim.name, optim.lr.start) == (arm.settings["optim.name"], arm.settings["optim.lr"])


def test_set_and_variants_are_laid_under_a_component_too(plan: Make, tiny: Path) -> None:
    made = plan("set: {optim: {lr: 0.5}}\ngrid: {optim: [{name: sgd}, {name: lars}]}")
    assert {trial.spec.optim.lr.start for trial in made.trials} == {0.5}
    made = plan("variants: {a: {optim.lr: 0.5, optim.name: sgd}, b: {optim.lr: 0.1, optim.name: sgd}}")
    assert [trial.spec.optim.lr.start for trial in made.trials] == [0.001, 0.5, 0.1]
    spec = load(tiny, ["head.dim=64", "head={name: mlp}", "optim.lr=1", "optim.name=sgd"]).spec
    assert (spec.head.name, spec.head.dim, spec.optim.lr.start) == ("mlp", 64, 1.0)  # type: ignore[attr-defined]


def test_a_value_that_another_key_of_its_arm_replaces_is_refused(plan: Make) -> None:
    (line,) = mistakes(plan, "grid: {optim: [{name: sgd, lr: 0.1}], optim.lr: [0.2]}")
    assert line == (
        "s.yaml:3:16: optim: has no effect, because 'optim.lr' of the same arm replaces it; "
        "leave out one of the two"
    )
    (line,) = mistakes(plan, "variants: {a: {optim.lr: 0.5}}\ngrid: {optim.lr: [0.1, 0.2]}")
    assert "3:16: optim.lr: has no effect, because 'optim.lr' of the same arm" in line
    (line,) = mistakes(
        plan, "variants: {a: {optim.lr: 0.5}, b: {optim.lr: 0.1}}\nbaseline: a", "optim.lr=0.7"
    )
    assert "has no effect, because every arm and the baseline replace it" in line


def test_conditions_know_defaults_and_lists(plan: Make) -> None:
    space = "random: {samples: 16}\nspace: {%s, optim.lr: {uniform: [0.1, 0.2], when: %s}}"
    made = plan(space % (TARGETS, "{train.compile: false}"))  # which the base does not write
    assert all("optim.lr" in arm.settings for arm in made.study.arms if arm.settings)
    three = TARGETS.replace("]", ", {name: softmax}]")
    made = plan(space % (three, "{targets.name: [sinkhorn, softmax]}"))
    arms = [arm.settings for arm in made.study.arms if arm.settings]
    assert {arm["targets"]["name"] for arm in arms} == {"center", "sinkhorn", "softmax"}
    for arm in arms:
        assert ("optim.lr" in arm) == (arm["targets"]["name"] != "center")
    made = plan(space % (TARGETS, "{loss.temperature: 0.1}"))  # a schedule that does not change
    assert all("optim.lr" in arm.settings for arm in made.study.arms if arm.settings)


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("targets.nmae: center", "has the key 'targets.nmae'; did you mean 'targets.name'?"),
        ("targets.name: centre", "never holds: targets.name is never centre here (it is: center, sinkhorn)"),
        ("targets.name: [center, koleo]", "targets.name is never koleo here"),
        ("train.accumulate: true", "never holds: train.accumulate is never true here (it is: 1)"),
        ("backbone.depth: 2", "asks for what 'backbone.depth' sets, which must stand above it in space"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(plan: Make, when: str, words: str) -> None:
    rate = f"optim.lr: {{uniform: [0.1, 0.2], when: {{{when}}}}}"
    depth = "backbone.depth: {int_uniform: [1, 2]}"
    (line,) = mistakes(plan, f"random: {{samples: 2}}\nspace: {{{TARGETS}, {rate}, {depth}}}")
    assert line.startswith("s.yaml:4:")
    assert f"space.optim.lr.when.{when.partition(':')[0]}: " in line
    assert words in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: {seed: [1, 2]}\nseeds: 2", "3:8: grid.seed: `seeds` sets the seed of every arm"),
        ("variants: {a: {seed: 4}}\nseeds: [7]", "3:16: variants.a.seed: `seeds` sets the seed"),
        (
            "set: {seed: 4294967295}\ngrid: {targets.momentum: [0, 0.9]}\nseeds: 2",
            "5:1: seeds: 2 seeds, counted from the base's seed 4294967295, exceed the largest",
        ),
        (
            "grid: {targets.momentum: [0]}\nseeds: [4294967296]",
            "4:9: seeds.0: must be less than 4294967296, got 4294967296",
        ),
        ("grid: {targets.momentum: [0]}\nseeds: [3, 3]", "4:1: seeds: the seed 3 is given twice"),
    ],
)
def test_seeds_are_said_once_and_exist(plan: Make, text: str, words: str) -> None:
    (line,) = mistakes(plan, text)
    assert words in line
    assert (
        plan("set: {seed: 4294967294}\ngrid: {targets.momentum: [0, 0.9]}\nseeds: 2").trials[-1].spec.seed
        == 2**32 - 1
    )


def test_mistakes_of_the_sweep_its_base_and_its_values_come_in_one_round(plan: Make, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("epochs: 3", "epochs: -3"))
    lines = mistakes(plan, "gird: 1\ngrid: {targets.temprature: [0.1]}\nseeds: 0\npack: 2")
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
        "gird",
        "targets.temprature",
        "seeds",
        "pack",
        "train.epochs",
    ]
    assert "pack: unknown key; did you mean 'stack'?" in lines[3]
