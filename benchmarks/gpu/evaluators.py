"""Evaluators on the GPU against the CPU: the same network, as it is before training, and the same images."""

from __future__ import annotations

from functools import cache

import torch

from benchmarks.gpu.comparing import CPU, Comparison, compare
from benchmarks.gpu.worker import Work
from benchmarks.together import QUICKSTART
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import Shelf

SHELF = Shelf()
FULL = ("data.train_images=1000", "data.test_images=500")
TOY = ("data.train_images=120", "data.test_images=60", "backbone={width: 24, depth: 2, heads: 2}")
# By the names of a run's evaluators: how each is written, and the largest difference of its scores, relative
# where one is above 1. A hundredth of 500 test images are five whose neighbours or classes are that close.
WRITTEN = {
    "knn": ("{name: knn, k: [10, 20]}", 0.01),
    "knn_2": ("{name: knn, k: [10, 20], precision: bfloat16}", 0.01),
    "linear_probe": ("{name: linear_probe}", 0.02),
    "logistic": ("{name: logistic}", 0.02),
    "low_shot": ("{name: low_shot, shares: [0.1]}", 0.02),
    # Of few steps: the rounding of either device grows with each.
    "fine_tune": ("{name: fine_tune, epochs: 2}", 0.02),
    "clusters": ("{name: clusters}", 0.03),
    "spectrum": ("{name: spectrum}", 0.005),
    "retrieval": ("{name: retrieval}", 0.01),
    "invariance": ("{name: invariance, images: 60}", 0.005),
    "attention_masks": ("{name: attention_masks, images: 60}", 0.005),
    "attention_boxes": ("{name: attention_boxes, images: 60, centre: true}", 0.02),
    "dense": ("{name: dense, images: 60}", 0.02),
}


@cache
def _run(device: torch.device, toy: bool) -> Run:
    written = ", ".join(text for text, _ in WRITTEN.values())
    settings = [*(TOY if toy else FULL), f"evaluators=[{written}]"]
    spec = load(QUICKSTART, settings).spec
    run = build(spec, registry, device, SHELF.data(spec, registry))
    if device != CPU:
        run.load_state_dict(_run(CPU, toy).state_dict())
    return run


def difference(name: str, device: torch.device, toy: bool) -> float:
    """The largest of one evaluator's scores."""
    there, here = (
        _run(each, toy).evaluate([(name, _run(each, toy).evaluators[name])])[0].scores
        for each in (device, CPU)
    )
    assert there.keys() == here.keys()
    return max(abs(there[key] - here[key]) / max(1.0, abs(here[key])) for key in here)


def _comparison(name: str, most: float) -> Comparison:
    return Comparison(name, most, lambda device, toy: difference(name, device, toy))


def measure(work: Work) -> None:
    """A row for each."""
    comparisons = [_comparison(name, most) for name, (_, most) in WRITTEN.items()]
    compare(work, "Difference of scores", comparisons, 20)
