"""Every spec in the repository validates; tests/training/test_methods.py trains every method."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dino_lab.building.check import check
from dino_lab.registry import registry
from dino_lab.spec.evaluation import load_evaluation
from dino_lab.spec.file import load
from dino_lab.spec.model import Spec
from dino_lab.sweeps.plan.plan import load_plan
from dino_lab.training.build import build
from dino_lab.training.loop import train

ROOT = Path(__file__).parents[1] / "experiments"
SWEEPS = sorted(
    file for file in ROOT.rglob("*.yaml") if "$schema=../../.dino-lab.sweep.schema.json" in file.read_text()
)
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
    assert len(SWEEPS) >= 18
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
    of_paper = file.parent.name == "paper"
    assert len(plan.trials) == (5 if of_paper else 3) * len(plan.study.arms)
    assert plan.study.expect or not of_paper
    assert all(claim.claim and (claim.paper or not of_paper) for claim in plan.study.expect)
    assert plan.study.baseline in {arm.label for arm in plan.study.arms}
    lines = file.read_text().splitlines()
    assert lines[0] == "# yaml-language-server: $schema=../../.dino-lab.sweep.schema.json"
    assert lines[1].startswith("# ")


@pytest.mark.parametrize("file", SPECS, ids=names(SPECS))
def test_the_spec_validates(file: Path) -> None:
    lines = file.read_text().splitlines()
    schema = (file.parent / lines[0].removeprefix("# yaml-language-server: $schema=")).resolve()
    assert schema == ROOT.parent / ".dino-lab.schema.json"
    assert lines[1].startswith("# ")
    document = load(file)
    assert document.spec.name == file.stem
    assert check(document.spec, registry)  # no data is read


def test_a_run_takes_the_place_of_the_first_weights_in_distillation(execute: Callable) -> None:
    outcome = execute(load(ROOT / "methods" / "dino.yaml", SMALL).spec)
    run = two_steps_of(load(DISTILLATION, [*SMALL, f"teacher.run.path={outcome.folder}"]).spec)
    assert run.student.backbone.dim == 48
    assert run.teacher.source.backbone.dim == 96


def two_steps_of(spec: Spec) -> Any:
    run = build(spec, registry, torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in run.student.backbone.parameters()]
    rows = list(islice(train(run), 2))
    assert [row.step for row in rows] == [1, 2]
    assert all(torch.tensor(list(row.numbers.values())).isfinite().all() for row in rows)
    after = list(run.student.backbone.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in run.teacher.parameters())
    return run


L, LB, BN, FREE, SCALE, RELU = "linear", "linear + bias", "batch norm", "batch norm, free", "scale", "relu"
HEADS = {  # of the papers: projector, predictor; see the files
    "simclr": ([L, BN, RELU, L, SCALE], None),
    "byol": ([L, BN, RELU, L], [L, BN, RELU, L]),
    "simsiam": ([L, BN, RELU, L, BN, RELU, L, FREE], [L, BN, RELU, LB]),
    "moco_v2": ([LB, RELU, LB], None),
    "moco_v3": ([L, BN, RELU, L, BN, RELU, L, FREE], [L, BN, RELU, L, FREE]),
    "vicreg": ([L, BN, RELU, L, BN, RELU, L], None),
    "barlow_twins": ([L, BN, RELU, L, BN, RELU, L], None),
}


def layers(head: Any) -> list[str]:
    found = []
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            found.append(L if layer.bias is None else LB)
        elif isinstance(layer, nn.BatchNorm1d):
            learned = sum(p.requires_grad for p in layer.parameters())
            found.append([FREE, SCALE, BN][learned])
        else:
            found.append({nn.ReLU: RELU}[type(layer)])
    return found


@pytest.mark.parametrize("method", HEADS)
def test_the_heads_are_those_of_the_paper(method: str) -> None:
    run = build(load(ROOT / "methods" / f"{method}.yaml", SMALL).spec, registry, torch.device("cpu"))
    predictor = run.student.predictor
    assert (layers(run.student.head), predictor and layers(predictor)) == HEADS[method]
    assert run.spec.optim.clip is None
    if method == "simsiam":  # Sec. 3: 2048 and 512
        widths = [layer.out_features for layer in predictor.layers if isinstance(layer, nn.Linear)]
        assert [width / run.student.head.dim for width in widths] == [1 / 4, 1]
