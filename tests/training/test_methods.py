"""Every method of experiments/methods trains, as a combination of components and nothing else."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train

CPU = torch.device("cpu")
METHODS = Path(__file__).parents[2] / "experiments" / "methods"
# Distillation wants the folder of a run; tests/components/test_frozen.py and test_token_loss.py have one.
FILES = sorted(file for file in METHODS.rglob("*.yaml") if "distillation" not in file.stem)
SMALLER = [
    "data.train_images=32",
    "data.test_images=32",
    "train={batch_size: 8, log_every: 1}",
    "backbone.depth=1",
]
ROWS = {
    "moco_v2": {"accuracy"},
    "moco_v3": {"accuracy"},
    "patch_discrimination": {"accuracy"},
    "simclr": {"accuracy"},
    "vicreg": {"invariance", "variance", "covariance"},
    "dino_koleo": {"regularizer.koleo", "entropy", "kl"},
}


def smaller(file: Path) -> Run:
    return build(load(file, SMALLER).spec, registry, CPU)


def test_there_are_methods() -> None:
    assert {file.stem for file in FILES} >= {
        "barlow_twins",
        "byol",
        "dino_koleo",
        "moco_v2",
        "moco_v3",
        "patch_discrimination",
        "simclr",
        "simsiam",
        "vicreg",
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_method_trains_two_steps(file: Path) -> None:
    run = smaller(file)
    before = {name: p.clone() for name, p in run.student.named_parameters()}
    steps = train(run)
    rows = [next(steps).numbers, next(steps).numbers]
    for row in rows:
        assert all(map(math.isfinite, row.values()))
        assert row.keys() >= ROWS.get(file.stem, set())
        assert row["gradient_norm"] > 0
    assert rows[0]["loss"] != rows[1]["loss"]
    assert any(not torch.equal(p, before[name]) for name, p in run.student.named_parameters())
    # The gradient reaches every weight that moves, and nothing in a teacher.
    still = "last_layer" if run.spec.optim.freeze_last_layer else None
    for name, p in run.student.named_parameters():
        if not p.requires_grad:
            assert torch.equal(p, before[name]), name
            continue
        assert p.grad is not None, name
        assert p.grad.any() or (still is not None and still in name), name
    assert all(p.grad is None and not p.requires_grad for p in run.teacher.parameters())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_method_is_a_short_file_that_says_what_it_is(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert len(lines) <= 25
    assert lines[0] == "# yaml-language-server: $schema=../../.dino-lab.schema.json"
    assert "arXiv" in "".join(line for line in lines if line.startswith("#"))


def gradients(run: Run) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in run.student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["simclr", "vicreg", "barlow_twins", "patch_discrimination"])
def test_the_gradient_comes_through_both_views(name: str) -> None:
    """A target without gradient halves the first step of a symmetric loss, and the loss shows nothing."""
    (file,) = [file for file in FILES if file.stem == name]
    run, stopped = (
        build(load(file, [*SMALLER, f"teacher.stop_gradient={word}"]).spec, registry, CPU)
        for word in ("false", "true")
    )
    one, other = next(train(run)), next(train(stopped))
    assert one.numbers["loss"] == other.numbers["loss"]
    assert one.numbers["gradient_norm"] > 1.2 * other.numbers["gradient_norm"]
