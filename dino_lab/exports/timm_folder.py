"""A folder that timm loads by its path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.exports.exported_backbone import ExportedBackbone, Whole
from dino_lab.protocols import GivesTimmConfig, ability
from dino_lab.runs.backbone_file import timm_inside, write_weights


def check() -> None:
    """Nothing is wanted that is not there."""


def write(subject: ExportedBackbone, into: Path, to: Path) -> str:
    """Write weights and config.json; return the lines that load them from `to`."""
    model, _ = timm_inside(subject.backbone, subject.name)
    config = _config(subject)
    into.mkdir()
    write_weights(model, into / "model.safetensors", {"format": "pt"})
    (into / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return (
        "import timm\n"
        f"model = timm.create_model({f'local-dir:{to}'!r}, pretrained=True).eval()\n"
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
    )


def read(subject: ExportedBackbone, written: Path) -> Callable[[Tensor], Tensor]:
    """Images in 0..1 to features, by what the folder says of itself."""
    import timm

    model = timm.create_model(f"local-dir:{written}", pretrained=True)
    config = timm.data.resolve_model_data_config(model)
    return Whole(model, tuple(config["mean"]), tuple(config["std"])).eval()


def _config(subject: ExportedBackbone) -> dict[str, Any]:
    """What timm's `load_model_config_from_path` reads."""
    backbone = ability(subject.backbone, GivesTimmConfig)
    others = "; --format safetensors, onnx and torchscript can"
    if backbone is None:
        raise UserError(f"backbone {subject.name!r} does not say how timm.create_model builds it{others}")
    try:
        architecture, arguments = backbone.timm_config()
    except UserError as error:
        raise UserError(f"--format timm: {error}{others}") from error
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": subject.features.shape[1],
        "pretrained_cfg": {
            "input_size": subject.shape,
            "fixed_input_size": "img_size" in arguments and not arguments.get("dynamic_img_size", False),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": subject.mean,
            "std": subject.std,
            "num_classes": 0,
        },
        "model_args": arguments,
    }
