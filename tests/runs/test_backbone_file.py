from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_lab.evaluation.subjects import run_subject
from dino_lab.registry import registry
from dino_lab.runs.backbone_file import write_backbone
from dino_lab.runs.open import open_run

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings",
    [
        [],
        [
            "backbone={name: timm, model: vit_tiny_patch16_224}",
            "augment.global_size=32",
            "augment.local_size=16",
        ],
        ["backbone={name: timm, model: resnet10t}"],
    ],
    ids=["vit", "timm vit", "timm resnet"],
)
@pytest.mark.parametrize("of", ["teacher", "student"])
def test_plain_timm_gives_the_same_features(
    settings: list[str], of: str, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    outcome = execute(tiny_spec(*settings, "train.epochs=1", "evaluators=[]"))
    file = tmp_path / "b.safetensors"
    run = open_run(outcome.folder, registry, CPU)
    lines = write_backbone(run.backbone(of), run.spec, run.augment, file)
    assert len(lines.splitlines()) == 3
    scope: dict[str, torch.nn.Module] = {}
    exec(lines, scope)
    size = run.size
    images = torch.rand(4, 3, size, size)
    with torch.no_grad():
        theirs = scope["model"].eval()(images)
        ours = run.backbone(of).backbone.eval()(images)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    if of == "teacher":
        written, left = (load_file(f) for f in (file, outcome.folder / "backbone.safetensors"))
        assert written.keys() == left.keys()
        assert all(torch.equal(value, left[key]) for key, value in written.items())


def test_evaluating_a_run_again_gives_its_last_scores(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec())
    (scored,) = run_subject(outcome.folder, registry, CPU).score()
    assert scored.protocol.startswith("knn/2")
    assert scored.named_scores == outcome.scores_after
