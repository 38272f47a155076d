"""Every spec in the repository validates, and every method in it trains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch

from dino_lab.building.check import check
from dino_lab.errors import SpecError
from dino_lab.registry import registry
from dino_lab.spec.evaluation import load_evaluation
from dino_lab.spec.file import load
from dino_lab.sweeps.plan.plan import load_plan
from dino_lab.training.build import build
from dino_lab.training.loop import train

ROOT = Path(__file__).parents[1] / "experiments"
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
EVALUATIONS = sorted((ROOT / "evaluations").glob("*.yaml"))
SPECS = sorted(set(ROOT.rglob("*.yaml")) - set(SWEEPS) - set(EVALUATIONS))
METHODS = sorted((ROOT / "methods").glob("*.yaml"))
SMALL = (
    "data.train_images=64",
    "data.test_images=32",
    "train.batch_size=16",
    "train.epochs=1",
    "train.log_every=1",
    "evaluators=[]",
)
DISTILLATION = ROOT / "methods" / "distillation.yaml"


def names(files: list[Path]) -> list[str]:
    return [str(file.relative_to(ROOT).with_suffix("")) for file in files]


def test_there_are_specs() -> None:
    assert len(SPECS) >= len(METHODS) + 3
    assert len(METHODS) >= 14
    assert len(SWEEPS) >= 11
    assert len(EVALUATIONS) >= 3


@pytest.mark.parametrize("file", EVALUATIONS, ids=names(EVALUATIONS))
def test_the_evaluation_validates(file: Path) -> None:
    evaluation = load_evaluation(file, registry).evaluation
    assert evaluation.evaluators
    for params in evaluation.evaluators:
        assert registry.build("evaluator", params).protocol
    lines = file.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../../.dino-lab.evaluation.schema.json"
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("file", SWEEPS, ids=names(SWEEPS))
def test_the_sweep_plans(file: Path, tmp_path: Path) -> None:
    plan = load_plan(file, (), registry, runs=tmp_path)
    assert len(plan.trials) == 3 * len(plan.study.arms)
    assert plan.study.baseline in {arm.label for arm in plan.study.arms}
    lines = file.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../../.dino-lab.sweep.schema.json"
    assert lines[1].startswith("# ")


@pytest.fixture
def teacher(execute: Callable) -> str:
    """The setting that a distillation needs: a run that has something to teach."""
    outcome = execute(load(ROOT / "methods" / "dino.yaml", SMALL).spec)
    return f"teacher.run.path={outcome.folder}"


def settings_of(file: Path, request: pytest.FixtureRequest) -> list[str]:
    return [request.getfixturevalue("teacher")] if file == DISTILLATION else []


@pytest.mark.parametrize("file", SPECS, ids=names(SPECS))
def test_the_spec_validates(file: Path, request: pytest.FixtureRequest) -> None:
    lines = file.read_text().splitlines()
    schema = (file.parent / lines[0].removeprefix("# yaml-language-server: $schema=")).resolve()
    assert schema == ROOT.parent / ".dino-lab.schema.json"
    assert lines[1].startswith("# ")
    document = load(file, settings_of(file, request))
    assert document.spec.name == file.stem
    assert check(document.spec, registry)  # no data is read


@pytest.mark.parametrize("file", METHODS, ids=names(METHODS))
def test_the_method_trains(file: Path, request: pytest.FixtureRequest) -> None:
    run = build(load(file, [*SMALL, *settings_of(file, request)]).spec, registry, torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in run.student.backbone.parameters()]
    rows = list(islice(train(run), 2))
    assert [row.step for row in rows] == [1, 2]
    assert all(torch.tensor(list(row.numbers.values())).isfinite().all() for row in rows)
    after = list(run.student.backbone.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in run.teacher.parameters())


def test_a_distillation_without_a_teacher_says_what_is_missing() -> None:
    with pytest.raises(
        SpecError, match=r"distillation\.yaml:\d+:\d+: teacher\.run\.path: required, but not given$"
    ):
        load(DISTILLATION)
