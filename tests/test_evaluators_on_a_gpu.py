"""Every evaluator on a device whose tensors do not mix with the CPU's, with the scores of the CPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dino_lab.evaluation.scoring import score
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.testing.pretended import Mixed, OnGpu, pretended_gpu
from dino_lab.training.build import Run, build

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so none is pretended")
QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
SMALL = ("data={name: shapes, train_images: 60, test_images: 30, size: 32}", "train.batch_size=8")
PARAMS: dict[str, dict[str, Any]] = {
    "attention_boxes": {"images": 8},
    "attention_masks": {"images": 8},
    "copy_detection": {"top": 5, "generate": {"images": 3}},
    "dense": {"images": 8, "k": 3},
    "knn": {"k": [1, 5]},
    "linear_probe": {"epochs": 2},
    "low_shot": {"shares": [0.2], "draws": 2},
}
EXCUSED = {"fine_tune": "a pretended GPU computes no gradients"}


def _scores(run: Run, data: Any) -> dict[str, float]:
    size = run.augment.groups[0][1]
    (found,) = score(tuple(run.evaluators.items()), data, lambda _: run.student, size, nullcontext)
    assert all(found.files.values())
    return found.scores


@pytest.mark.parametrize("name", registry.names("evaluator"))
def test_an_evaluator_moves_nothing_by_the_way_and_scores_alike(name: str) -> None:
    if name in EXCUSED:
        pytest.skip(EXCUSED[name])
    asked = {"name": name, **PARAMS.get(name, {})}
    run = build(load(QUICKSTART, [*SMALL, f"evaluators={[asked]}"]).spec, registry, torch.device("cpu"))
    scores = _scores(run, run.data)
    with pretended_gpu() as there:
        run.student.to(there)
        assert all(isinstance(weight, OnGpu) for weight in run.student.parameters())
        found = _scores(run, run.data.to(there))  # type: ignore[attr-defined]
    assert found == pytest.approx(scores, abs=5e-4)


def test_what_a_gpu_refuses_is_refused() -> None:
    with pretended_gpu() as there:
        x, y = torch.arange(6.0, device=there), torch.arange(6.0)
        with pytest.raises(Mixed):
            x + y
        with pytest.raises(Mixed):
            y[torch.tensor([1, 2], device=there)]
        with pytest.raises(TypeError, match="cpu"):
            np.asarray(x)
        with pytest.raises(TypeError, match="cpu"):
            x.numpy()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=there, generator=torch.Generator())


def test_what_a_gpu_computes_is_computed() -> None:
    with pretended_gpu() as there:
        x = torch.tensor([3.0, 1.0, 2.0], device=there)
        assert x.device == there
        assert (x * 2 + torch.tensor(1.0)).tolist() == [7, 3, 5]
        assert x[torch.tensor([0, 2])].tolist() == [3, 2]  # indices of the CPU are moved by torch
        assert x.sort().values.cpu().numpy().tolist() == [1, 2, 3]
        assert torch.zeros_like(x).add_(x).max().item() == 3
        y = torch.empty(3)
        y.copy_(x)
        assert y.tolist() == [3, 1, 2]
