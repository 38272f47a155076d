"""The learned backbone as a file that plain timm loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dino_lab.errors import UserError
from dino_lab.network import Network
from dino_lab.registry import Registry
from dino_lab.training.build import Run
from dino_lab.training.evaluate import open_run


def export(folder: Path, registry: Registry, *, to: Path, of: str) -> str:
    """Write the backbone of a run's checkpoint; return the Python lines that load it."""
    return write_backbone(open_run(folder, registry, torch.device("cpu")), to, of)


def write_backbone(run: Run, to: Path, of: str) -> str:
    """Write the backbone of the teacher or the student; return the Python lines that load it."""
    backbone: Any = run.network(of).backbone
    if not hasattr(backbone, "as_timm"):
        raise UserError(f"backbone {run.spec.backbone.name!r} has no timm model inside to export")
    model, recipe = backbone.as_timm()
    weights = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    lines = _lines(recipe, to)
    temporary = to.with_name(f"{to.name}.tmp")
    try:
        safetensors.torch.save_file(weights, temporary, {"load": lines, **_normalization(run.network(of))})
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return lines


def _lines(recipe: str, file: Path) -> str:
    return (
        "import timm, safetensors.torch\n"
        f"model = {recipe}\n"
        f"model.load_state_dict(safetensors.torch.load_file({str(file)!r}))"
    )


def _normalization(network: Network) -> dict[str, str]:
    return {"mean": str(network.mean.flatten().tolist()), "std": str(network.std.flatten().tolist())}
