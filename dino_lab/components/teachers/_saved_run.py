"""The network of a saved run, built from its spec.yaml and filled from its last.pt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.network import Network
from dino_lab.registry import registry


class SavedRun(BaseModel, frozen=True, extra="forbid"):
    """The network of a run of this package, with its head."""

    path: Path = Field(description="folder of the run, `runs/NAME/HASH`")
    of: Literal["teacher", "student"] = Field(
        "teacher", description="network that is taken; the student where the teacher has no network"
    )


def load_run(run: SavedRun) -> Network:
    """The network, without predictor; a UserError says what is missing or does not belong together."""
    spec, weights = _spec(run.path), _weights(run.path, run.of)
    try:
        network = _build(spec, weights["mean"], weights["std"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{run.path / 'spec.yaml'}: {where}: {first['msg']}") from None
    except (KeyError, TypeError) as error:
        raise UserError(f"{run.path / 'spec.yaml'}: not the spec of a run ({error})") from None
    _check_shapes(network, weights, run.path)
    if not network.mean.is_meta:
        network.load_state_dict(weights)
    return network


def _spec(path: Path) -> dict[str, Any]:
    file = path / "spec.yaml"
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no run lies here (spec.yaml: {error.strerror})") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)})") from None


def _weights(path: Path, of: str) -> dict[str, Tensor]:
    file = path / "last.pt"
    if not file.exists():
        raise UserError(f"{path}: there is no checkpoint yet (last.pt)")
    try:
        # Mapped, so that the optimizer's state is never read.
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        student, teacher = state["student"], state["teacher"]
    except Exception as error:
        raise UserError(f"{file}: not a whole checkpoint ({first_line(error)})") from error
    network = {key.removeprefix("network."): teacher[key] for key in teacher if key.startswith("network.")}
    chosen = network if of == "teacher" and network else student
    return {key: value for key, value in chosen.items() if not key.startswith("predictor.")}


def _build(spec: dict[str, Any], mean: Tensor, std: Tensor) -> Network:
    """The network of a run with this spec, with first weights."""
    augment = _component("augment", spec["augment"])
    size = max(pixels for _, pixels in augment.groups)
    backbone = _component("backbone", spec["backbone"], mean.numel(), size)
    head = _component("head", spec["head"], backbone.dim)
    return Network(backbone, head, mean=tuple(mean.flatten().tolist()), std=tuple(std.flatten().tolist()))


def _component(kind: str, given: dict[str, Any], *context: int) -> Any:
    params = registry.find(kind, given["name"]).params
    return registry.build(kind, params.model_validate_json(json.dumps(given), strict=True), *context)


def _check_shapes(network: Network, weights: dict[str, Tensor], path: Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"{path}: last.pt and spec.yaml do not belong together: {key} is "
                f"{found.get(key, 'missing')} in one, {wanted.get(key, 'missing')} in the other"
            )
