"""docs/names.md has every name of a row, every score of an evaluator and every distribution, and no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_methods import METHODS

from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.sweeps.plan.model import DISTRIBUTIONS
from dino_lab.training.build import build

PAGE = (Path(__file__).parents[2] / "docs" / "names.md").read_text()
KOLEO = "regularizers=[{name: koleo}, {name: koleo, on: projections}]"
SMALL = {
    "linear_probe": "epochs: 1, rates: [0.01]",
    "fine_tune": "epochs: 1",
    "low_shot": "iterations: 5, draws: 2",
    "logistic": "iterations: 5, inverse_penalties: [1.0]",
    "invariance": "images: 8",
    "copy_detection": "generate: {images: 4}",
    "attention_masks": "images: 8",
    "attention_boxes": "images: 8",
    "dense": "images: 16",
}


def table(title: str) -> list[list[str]]:
    """The cells of a section's table, line by line, without the header."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def matches(name: str, pattern: str) -> bool:
    """Whether a name is meant by a pattern of the page, in which `<k>` and … stand for anything."""
    expression = re.sub(r"<[^>]+>|…", r"\\w+", re.escape(pattern))
    return re.fullmatch(expression, name) is not None


def test_rows(tiny_spec: Callable, execute: Callable) -> None:
    names: set[str] = set()
    for settings in ([KOLEO], METHODS["simclr"], METHODS["vicreg"], METHODS["dino and tokens"]):
        outcome = execute(tiny_spec(*settings, "train.epochs=1", "train.log_every=1", "data.train_images=48"))
        names |= {name for row in RunFolder(outcome.folder).rows() for name in row}
    patterns = {name for line in table("Rows") for name in names_in(line[0])}
    assert [name for name in names if not any(matches(name, pattern) for pattern in patterns)] == []
    unseen = {pattern for pattern in patterns if not any(matches(name, pattern) for name in names)}
    assert unseen == {"peak_memory"}  # of a GPU


def test_scores(tiny_spec: Callable) -> None:
    evaluators = sorted(registry.names("evaluator"))
    listed = [f"{{name: {name}, {SMALL.get(name, '')}}}" for name in evaluators]
    run = build(tiny_spec(f"evaluators=[{', '.join(listed)}]"), registry, torch.device("cpu"))
    patterns: dict[str, list[str]] = {}
    meant: list[str] = []
    for evaluator, scores, _ in table("Scores"):
        if evaluator:
            meant = patterns[names_in(evaluator)[0]] = []
        meant += names_in(scores)
    assert set(patterns) == set(evaluators)
    for scored in run.evaluate(list(run.evaluators.items())):
        named = patterns[scored.name]
        assert [name for name in scored.scores if not any(matches(name, p) for p in named)] == []


def test_distributions() -> None:
    names = [names_in(line[0])[0].partition(":")[0] for line in table("Distributions")]
    assert names == list(DISTRIBUTIONS)
