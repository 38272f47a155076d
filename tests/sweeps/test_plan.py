"""A sweep file becomes whole specs, or every mistake in it at its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from dino_lab.errors import SpecError, UserError
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.sweeps.plan.arms import label
from dino_lab.sweeps.plan.model import Resources
from dino_lab.sweeps.plan.plan import Plan, load_plan
from dino_lab.sweeps.ray.capacity import Machine, shortage

HEAD = "base: tiny.yaml\nmetric: knn.5nn\n"
Make = Callable[..., Plan]


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Make:
    def make(text: str, *settings: str, head: str = HEAD) -> Plan:
        file = tmp_path / "s.yaml"
        file.write_text(head + text)
        return load_plan(file, settings, registry, runs=tmp_path / "runs")

    return make


def mistakes(plan: Make, text: str, *settings: str, head: str = HEAD) -> list[str]:
    with pytest.raises(SpecError) as caught:
        plan(text, *settings, head=head)
    return [line.rpartition("/")[2] for line in str(caught.value).splitlines()]


def test_arms_that_differ_in_the_images_to_evaluate_on_are_one_run(plan: Make) -> None:
    on = "{name: shapes, train_images: 20, test_images: 10, size: 16}"
    [line] = mistakes(plan, f"grid: {{evaluate_on: [null, {on}]}}\n")
    assert "arms that differ in evaluate_on alone are one run" in line
    assert len(plan("grid: {seed: [0, 1]}\n", f"evaluate_on={on}").trials) == 2


def test_a_grid_is_every_combination_under_every_seed(plan: Make, tiny: Path, tmp_path: Path) -> None:
    made = plan("grid: {targets.temperature: [0.02, 0.04], targets.momentum: [0, 0.9]}\nseeds: 2\n")
    assert [arm.label for arm in made.study.arms] == [
        "temperature=0.02 momentum=0",
        "temperature=0.02 momentum=0.9",
        "temperature=0.04 momentum=0",
        "temperature=0.04 momentum=0.9",
    ]
    # All arms under one seed first: what is there early compares them all.
    assert [trial.spec.seed for trial in made.trials] == [0] * 4 + [1] * 4
    first = made.trials[0].spec
    settings = ["targets.temperature=0.02", "targets.momentum=0"]
    assert first == load(tiny, settings).spec
    # Where `run` would put it, so what is done is done for both.
    assert made.trials[0].folder(tmp_path) == tmp_path / "tiny" / load(tiny, settings).spec.hash
    assert made.study.baseline == "temperature=0.04 momentum=0.9"  # the base as it is, found among the arms


def test_variants_multiply_with_a_grid_and_components_are_values(plan: Make) -> None:
    made = plan(
        "variants: {plain: {}, softmax: {targets: {name: softmax}}}\n"
        "grid: {loss: [{name: cross_entropy}, {name: cross_entropy, temperature: 0.2}]}\n"
    )
    assert [arm.label for arm in made.study.arms] == [
        "plain loss=cross_entropy",
        "plain loss=cross_entropy{temperature: 0.2}",
        "softmax loss=cross_entropy",
        "softmax loss=cross_entropy{temperature: 0.2}",
    ]
    assert made.trials[3].spec.targets.name == "softmax"
    assert made.study.axes == ("variant", "loss")


def test_a_baseline_that_is_no_arm_becomes_the_first(plan: Make) -> None:
    made = plan("baseline: {targets.momentum: 0.5}\ngrid: {targets.momentum: [0, 0.9]}\n")
    assert [arm.label for arm in made.study.arms] == ["momentum=0.5", "momentum=0", "momentum=0.9"]
    assert made.study.baseline == "momentum=0.5"
    assert plan("baseline: b\nvariants: {a: {seed: 1}, b: {seed: 2}}\n").study.baseline == "b"


def test_equal_specs_run_once(plan: Make) -> None:
    made = plan("variants: {a: {targets.momentum: 0.9}, b: {}, c: {targets.momentum: 0}}\nseeds: 2\n")
    assert (len(made.trials), made.joined) == (4, 2)
    folders = {arm.label: arm.folders for arm in made.study.arms}
    assert folders["a"] == folders["b"] != folders["c"]


def test_settings_change_the_sweep_or_the_base(plan: Make) -> None:
    text = "grid: {targets.momentum: [0, 0.9]}\nset: {train.epochs: 5}\n"
    made = plan(text, "seeds=[4, 7]", "train.epochs=1")
    assert [trial.spec.seed for trial in made.trials] == [4, 4, 7, 7]
    assert {trial.spec.train.epochs for trial in made.trials} == {1}
    assert {trial.spec.train.epochs for trial in plan(text).trials} == {5}


def test_draws_are_the_same_every_time_and_conditions_hold(plan: Make) -> None:
    text = (
        "random: {samples: 12, seed: 3}\nspace:\n"
        "  targets: {choice: [{name: center}, {name: softmax}]}\n"
        "  targets.momentum: {uniform: [0.2, 0.8], when: {targets.name: center}}\n"
        "  optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}\n"
    )
    first, again = plan(text), plan(text)
    assert [trial.spec for trial in first.trials] == [trial.spec for trial in again.trials]
    drawn = [trial.spec for trial in first.trials if trial.label != "base seed 0"]
    assert {spec.targets.name for spec in drawn} == {"center", "softmax"}
    for spec in drawn:
        assert 1e-4 <= spec.optim.lr.start <= 1e-2
        if spec.targets.name == "center":
            assert 0.2 <= spec.targets.momentum.start <= 0.8  # type: ignore[attr-defined]
    # A condition moves no other draw.
    free = plan(text.replace(", when: {targets.name: center}", "").replace("name: softmax", "name: center"))
    rates = [trial.spec.optim.lr for trial in free.trials if trial.label != "base seed 0"]
    assert rates == [spec.optim.lr for spec in drawn]


MISTAKES = [
    (
        "grid: {targets.temprature: [0.1, 0.2]}",
        ["3:29: targets.temprature: unknown key; did you mean 'temperature'?"],
    ),
    (
        "grid: {targets.temperature: [0.1, -1, x]}",
        ["3:35: targets.temperature: must be", "3:39: targets.temperature: must be a number"],
    ),
    ("grid: {targets.temperature: []}", ["3:8: grid.targets.temperature: must have at least 1 items, got 0"]),
    ("grid: {}", ["1:1: nothing to compare: give variants, a grid, or a space"]),
    ("gird: {a: [1]}", ["3:1: gird: unknown key; did you mean 'grid'? (accepted: base,"]),
    ("grid: {extends: [a.yaml]}", ["3:18: extends: 'extends' belongs in the file of a spec"]),
    ("grid: {seed: [1]}\nseeds: 0", ["4:1: seeds: must be greater than 0"]),
    ("grid: {loss: [{name: mes}]}", ["3:16: loss.name: no loss is called 'mes'; did you mean 'mse'?"]),
    ("variants: {a: {}}\nbaseline: b", ["4:1: baseline: no variant is called 'b' (there are: a)"]),
    ("variants: {a: {teacher.name: emma}}", ["3:16: teacher.name: no teacher is called 'emma'"]),
    ("grid: {head.dim: [8]}\nspace: {optim.lr: {uniform: [1, 2]}}", ["1:1: space says where"]),
    (
        "random: {samples: 1}\nspace: {optim.lr: {uniform: [2, 1]}}",
        ["4:9: space.optim.lr: uniform needs the smaller number first"],
    ),
    (
        "random: {samples: 1}\nspace: {optim.lr: {choice: [1], uniform: [1, 2]}}",
        ["4:9: space.optim.lr: needs one of uniform, log_uniform, int_uniform, log_int_uniform, choice"],
    ),
    ("grid: {augment: [{name: triplet}]}", ["loss.name: augment 'triplet' gives pairs to push apart"]),
]


@pytest.mark.parametrize(("text", "wanted"), MISTAKES, ids=[text.splitlines()[0] for text, _ in MISTAKES])
def test_every_mistake_is_told_at_its_place(plan: Make, text: str, wanted: list[str]) -> None:
    told = mistakes(plan, text + "\n")
    assert len(told) == len(wanted)
    for line, words in zip(told, wanted, strict=True):
        assert words in line


def test_a_metric_needs_its_evaluator(plan: Make) -> None:
    grid = "grid: {targets.momentum: [0, 0.9]}\n"
    head = "base: tiny.yaml\nmetric: "
    (line,) = mistakes(plan, grid, head=f"{head}probe.top1\n")
    assert line == "s.yaml:2:1: metric: no evaluator of tiny is called 'probe' (there are: knn)"
    (line,) = mistakes(plan, grid, head=f"{head}efective_rank\n")
    assert "2:1: metric: no row has the number 'efective_rank'; did you mean 'effective_rank'?" in line
    assert plan(grid, head=f"{head}effective_rank\n").trials


def test_a_mistake_in_the_base_is_told_once_and_there(plan: Make, tiny: Path) -> None:
    tiny.write_text(tiny.read_text().replace("epochs: 3", "epochs: -3"))
    (line,) = mistakes(plan, "grid: {targets.momentum: [0, 0.9]}\n")
    assert line.startswith("tiny.yaml:10:")


def test_a_sweep_is_no_base(plan: Make, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("base: tiny.yaml\nmetric: loss\ngrid: {seed: [1]}\n")
    (line,) = mistakes(plan, "grid: {seed: [1]}\n", head="base: other.yaml\nmetric: loss\n")
    assert line == "other.yaml is a sweep itself; a base is a spec"
    (line,) = mistakes(plan, "grid: {seed: [1]}\n", head="base: none.yaml\nmetric: loss\n")
    assert line == "none.yaml: no such file"


def test_a_huge_plan_is_confirmed_first(plan: Make) -> None:
    with pytest.raises(UserError, match=r"about 1001 trials, more than 1000; --yes"):
        plan(f"grid: {{seed: {list(range(1000))}}}\n")


def test_the_folder_is_that_of_the_plan(plan: Make, tmp_path: Path) -> None:
    text = "grid: {targets.momentum: [0, 0.9]}\n"
    folders = {
        plan(text).folder(tmp_path),
        plan(text).folder(tmp_path),
        plan(text, "seeds=2").folder(tmp_path),
    }
    assert len(folders) == 2


def test_labels_are_short_where_they_can_be() -> None:
    settings = {"optim.lr.start": 0.1, "targets.start": 2, "loss": {"name": "mse"}}
    assert label(settings, tuple(settings)) == "lr.start=0.1 targets.start=2 loss=mse"
    assert label({}, ()) == "base"


@pytest.mark.parametrize(
    ("cpu", "gpu", "machine", "at_once"),
    [
        (1, 0.0, Machine(2, 0), 2),
        (2, 0.0, Machine(3, 0), 1),
        (1, 0.3, Machine(16, 2), 6),
        (2, 4.0, Machine(32, 8), 2),
        (8, 4.0, Machine(32, 8), 1),
        (4, 0.25, Machine(8, 1), 2),
    ],
)
def test_as_many_at_once_as_there_is_room_for(cpu: int, gpu: float, machine: Machine, at_once: int) -> None:
    assert machine.at_once(Resources(cpu=cpu, gpu=gpu)) == at_once
    assert machine.lacks(Resources(cpu=cpu, gpu=gpu)) is None


def test_more_than_there_is_is_refused() -> None:
    assert Machine(2, 0).lacks(Resources(cpu=3)) == ("cpu", "3 cores for one trial, and this machine has 2")
    several = Resources(processes=2, cpu=3)
    assert (several.ranks, several.cores, Machine(16, 0).at_once(several)) == (2, 6, 2)
    assert Machine(4, 0).lacks(several) == ("cpu", "6 cores for one trial, and this machine has 4")
    assert Machine(9, 2).lacks(Resources(gpu=3)) == ("gpu", "3 GPUs for one trial, and this machine has 2")
    assert Machine(2, 0).lacks(Resources(gpu=0.5)) == (
        "gpu",
        "0.5 of a GPU for one trial, and this machine has none that can be used",
    )
    cluster = [Machine(2, 0, "small"), Machine(8, 0, "large")]
    assert shortage(cluster, Resources(cpu=8)) is None
    assert shortage(cluster, Resources(cpu=9)) == ("cpu", "9 cores for one trial, and large has 8")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu": 1.5}, "gpu should be a share up to 1, or a whole number, not 1.5"),
        ({"gpu": 2, "processes": 2}, "processes is for trials on the CPU"),
        ({"processes": 0}, "greater than or equal to 1"),
    ],
)
def test_resources_that_cannot_be(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Resources(**given)
