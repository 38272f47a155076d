"""A finished or half-finished run, opened again and scored."""

from __future__ import annotations

from pathlib import Path

import torch

from dino_lab.errors import UserError
from dino_lab.protocols import Evaluator
from dino_lab.registry import Registry
from dino_lab.training.build import Run, build
from dino_lab.training.run_dir import RunFolder


def open_run(path: Path, registry: Registry, device: torch.device) -> Run:
    """The run of a folder, with the state of its checkpoint."""
    return _open(RunFolder(path), registry, device)[0]


def evaluate(
    path: Path, registry: Registry, device: torch.device, *, of: str | None = None
) -> list[tuple[str, dict[str, float]]]:
    """Protocol and scores of each evaluator of the run's spec; `of` overrides whose features it asks for.

    What files the evaluators leave are written into the folder, as after the step of the checkpoint.
    """
    folder = RunFolder(path)
    run, step = _open(folder, registry, device)
    if not run.evaluators:
        raise UserError(f"{path}: its spec names no evaluators")
    results = []
    for params, evaluator in zip(run.spec.evaluators, run.evaluators, strict=True):
        if of is not None:
            evaluator.of = of  # type: ignore[assignment]
        results.append((evaluator.protocol, run.evaluate(evaluator)))
        write_files(run, params.name, evaluator, folder, step)
    return results


def write_files(run: Run, name: str, evaluator: Evaluator, folder: RunFolder, step: int) -> None:
    """Keep the files of an evaluator, after so many steps, under its name and that of its network."""
    for file, content in run.files(evaluator).items():
        folder.write_evaluation(step, f"{name}.{evaluator.of}.{file}", content)


def _open(folder: RunFolder, registry: Registry, device: torch.device) -> tuple[Run, int]:
    """The run of a folder as its checkpoint has it, and after how many steps that is."""
    path = folder.path
    spec = folder.spec(registry)
    run = build(spec, registry, device)
    state = folder.load(spec.hash, device)
    if state is None:
        raise UserError(f"{path}: there is no checkpoint yet (last.pt)")
    run.load_state_dict(state)
    return run, int(state["step"])
