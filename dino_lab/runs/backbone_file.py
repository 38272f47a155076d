"""The learned backbone as a file that plain timm loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from dino_lab.errors import UserError
from dino_lab.network import Network
from dino_lab.protocols import Augment, GivesTimmModel, ability
from dino_lab.spec.model import Spec


def write_backbone(network: Network, spec: Spec, augment: Augment, to: Path) -> str:
    """Write the backbone of a run's network; return the Python lines that load it."""
    temporary = to.with_name(f"{to.name}.tmp")
    try:
        mean, std = (tuple(value.flatten().tolist()) for value in (network.mean, network.std))
        lines = save_backbone(
            network.backbone, description(spec, augment), mean, std, into=temporary, named=to
        )
        temporary.replace(to)
    finally:
        temporary.unlink(missing_ok=True)
    return lines


def save_backbone(
    backbone: nn.Module,
    description: dict[str, Any],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    into: Path,
    named: Path,
) -> str:
    """Save the timm model inside, with its normalisation; return the lines that load it as `named`."""
    model, recipe = timm_inside(backbone, description["backbone"]["name"])
    lines = (
        "import timm, safetensors.torch\n"
        f"model = {recipe}\n"
        f"model.load_state_dict(safetensors.torch.load_file({str(named)!r}))"
    )
    metadata = {"load": lines, "recipe": recipe, "mean": str(list(mean)), "std": str(list(std))}
    metadata |= {key: json.dumps(value) for key, value in description.items()}
    write_weights(model, into, metadata)
    return lines


def description(spec: Spec, augment: Augment) -> dict[str, Any]:
    """The backbone as the spec has it, the size of the teacher's crops, and that of the largest."""
    sizes = [pixels for _, pixels in augment.groups]
    backbone = spec.backbone.model_dump(mode="json", serialize_as_any=True)
    return {"backbone": backbone, "size": sizes[0], "largest": max(sizes)}


def timm_inside(backbone: Any, name: str) -> tuple[nn.Module, str]:
    """The timm model of a backbone and the line that builds its like; a UserError where it has none."""
    model = ability(backbone, GivesTimmModel)
    if model is None:
        raise UserError(
            f"backbone {name!r} has no timm model inside to export; --format onnx and torchscript take any "
            "backbone"
        )
    return model.as_timm()


def write_weights(model: nn.Module, into: Path, metadata: dict[str, str]) -> None:
    """Write weights and buffers, for whoever may read other files: `save_file` lets its user alone read."""
    into.write_bytes(safetensors.torch.save(_weights_of(model), metadata))


def _weights_of(model: nn.Module) -> dict[str, Tensor]:
    """As safetensors wants them."""
    return {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
