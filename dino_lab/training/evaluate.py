"""A finished or half-finished run, opened again and scored."""

from __future__ import annotations

from pathlib import Path

import torch

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.spec.file import load_text
from dino_lab.training.build import Run, build
from dino_lab.training.run_dir import RunFolder


def open_run(path: Path, registry: Registry, device: torch.device) -> Run:
    """The run of a folder, with the state of its checkpoint."""
    folder = RunFolder(path)
    spec = load_text(folder.spec_text(), str(path / "spec.yaml"), registry=registry).spec
    run = build(spec, registry, device)
    state = folder.load(spec.hash, device)
    if state is None:
        raise UserError(f"{path}: there is no checkpoint yet (last.pt)")
    run.load_state_dict(state)
    return run


def evaluate(
    path: Path, registry: Registry, device: torch.device, *, of: str | None = None
) -> list[tuple[str, dict[str, float]]]:
    """Protocol and scores of each evaluator of the run's spec; `of` overrides whose features it asks for."""
    run = open_run(path, registry, device)
    if not run.evaluators:
        raise UserError(f"{path}: its spec names no evaluators")
    results = []
    for evaluator in run.evaluators:
        if of is not None:
            evaluator.of = of  # type: ignore[assignment]
        results.append((evaluator.protocol, run.evaluate(evaluator)))
    return results
