"""Weights as one file; plain timm builds the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_lab.exports.exported_backbone import ExportedBackbone, Whole
from dino_lab.runs.backbone_file import save_backbone, timm_inside


def check() -> None:
    """Nothing is wanted that is not there."""


def write(subject: ExportedBackbone, into: Path, to: Path) -> str:
    """Write the file; return the lines that load it as `to`."""
    return save_backbone(
        subject.backbone, subject.description, subject.mean, subject.std, into=into, named=to
    )


def read(subject: ExportedBackbone, written: Path) -> Callable[[Tensor], Tensor]:
    """Images in 0..1 to features, by what the file says of itself."""
    import timm
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(written, framework="pt") as file:
        metadata = file.metadata()
    scope: dict[str, Any] = {"timm": timm}
    _, recipe = timm_inside(subject.backbone, subject.name)
    model = eval(recipe, scope)  # our own expression, as it is printed
    model.load_state_dict(load_file(written))
    mean, std = (tuple(json.loads(metadata[key])) for key in ("mean", "std"))
    return Whole(model, mean, std).eval()
