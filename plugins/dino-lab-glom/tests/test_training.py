"""GLOM under DINO, from spec to run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dino_lab_glom.glom
import dino_lab_glom.islands  # noqa: F401 - registered by being imported
from dino_lab.registry import registry
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.spec.file import load
from dino_lab.training.trainer import FitOptions, Outcome, fit

SPEC = """\
data: {name: shapes, train_images: 96, test_images: 48, size: 16}
augment: {name: multicrop, global_size: 16, local_size: 8, local_views: 2}
backbone: {name: glom, width: 12, levels: 3, patch: 4, iterations: 2, radius: 1.5}
head: {name: prototypes, hidden: 32, bottleneck: 16, dim: 32}
teacher: {name: ema, momentum: 0.9}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw, lr: 1e-3}
train: {epochs: 2, batch_size: 24, log_every: 2}
evaluators: [{name: knn, k: [5]}, {name: islands, images: 40, pictures: 3}]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Any:
    file = tmp_path / "tiny.yaml"
    file.write_text(SPEC)
    return load(file).spec


def run(spec: Any, runs: Path, **options: Any) -> Outcome:
    return fit(spec, registry, FitOptions(runs, torch.device("cpu"), 3600.0), **options)


def test_a_run_scores_and_draws_its_islands(spec: Any, tmp_path: Path) -> None:
    outcome = run(spec, tmp_path / "runs")
    assert outcome.status == "finished"
    assert {key.split(".")[0] for key in outcome.scores_after} == {"knn", "islands"}
    assert outcome.scores_after["islands.level3_islands"] >= 1
    assert outcome.scores_after["islands.level1_part_gap"] != outcome.scores_before["islands.level1_part_gap"]
    left = sorted((outcome.folder / "evaluations").rglob("*.png"))
    assert [str(file.relative_to(outcome.folder)) for file in left] == [
        f"evaluations/{step:06}/islands.teacher.levels.png" for step in (0, 4, 8)
    ]
    pictures = [file.read_bytes() for file in left]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len(set(pictures)) == 3
    assert not (outcome.folder / "backbone.safetensors").exists()  # GLOM is no model of timm


def test_a_resumed_run_ends_at_the_same_weights(spec: Any, tmp_path: Path) -> None:
    whole = run(spec, tmp_path / "whole")
    steps = iter(range(100))
    cut = run(spec, tmp_path / "cut", stop=lambda: next(steps) == 2)
    assert cut.status == "interrupted"
    resumed = run(spec, tmp_path / "cut")
    assert resumed.status == "finished"
    found = [load_checkpoint(outcome.folder, spec.hash, torch.device("cpu")) for outcome in (whole, resumed)]
    states = [checkpoint.state for checkpoint in found if checkpoint is not None]
    assert len(states) == 2
    for part in ("student", "teacher"):
        one, other = (state[part] for state in states)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.scores_after == resumed.scores_after
