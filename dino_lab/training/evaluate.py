"""A finished or half-finished run, opened again and scored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.training.build import Run, build
from dino_lab.training.run_dir import RunFolder
from dino_lab.training.scoring import Scored


def open_run(path: Path, registry: Registry, device: torch.device) -> Run:
    """The run of a folder, with the state of its checkpoint."""
    return _open(RunFolder(path), registry, device)[0]


def evaluate(
    path: Path, registry: Registry, device: torch.device, *, of: Literal["teacher", "student"] | None = None
) -> list[Scored]:
    """What each evaluator of the run's spec finds; `of` overrides whose features it asks for.

    What files the evaluators leave are written into the folder, as after the step of the checkpoint.
    """
    folder = RunFolder(path)
    run, step = _open(folder, registry, device)
    if not run.evaluators:
        raise UserError(f"{path}: its spec names no evaluators")
    if of is not None:
        for evaluator in run.evaluators.values():
            evaluator.of = of
    found = run.evaluate(list(run.evaluators.items()))
    write_files(found, folder, step)
    return found


def write_files(found: Sequence[Scored], folder: RunFolder, step: int) -> None:
    """Keep the files of evaluators, after so many steps, under their names and those of their networks."""
    for scored in found:
        for file, content in scored.files.items():
            folder.write_evaluation(step, f"{scored.name}.{scored.of}.{file}", content)


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
