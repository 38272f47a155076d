"""An export from start to end: written beside its place, tried, described, and only then put there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.exports import onnx_file, safetensors_file, timm_folder, torchscript_file
from dino_lab.exports.card import card
from dino_lab.exports.exported_backbone import ExportedBackbone, backbone_to_export
from dino_lab.exports.formats import Format
from dino_lab.exports.round_trip import check_round_trip
from dino_lab.registry import Registry
from dino_lab.runs.open import open_run


class Exporter(Protocol):
    """A format, as a module has it."""

    def check(self) -> None:
        """A UserError where a package is missing; asked before a run is opened."""
        ...

    def write(self, subject: ExportedBackbone, into: Path, to: Path) -> str:
        """Write to `into`; return the Python lines that load it once it lies at `to`."""
        ...

    def read(self, subject: ExportedBackbone, written: Path) -> Callable[[Tensor], Tensor]:
        """What was written, as a function of images [N, C, H, W] in 0..1 to features [N, D]."""
        ...


EXPORTERS: dict[Format, Exporter] = {
    Format.safetensors: safetensors_file,
    Format.timm: timm_folder,
    Format.onnx: onnx_file,
    Format.torchscript: torchscript_file,
}


@dataclass(frozen=True)
class Exported:
    """What was written, how it is loaded, and how far its features are from the run's."""

    files: tuple[Path, ...]
    lines: str
    difference: float  # over the largest feature


def export(path: Path, registry: Registry, *, to: Path, format: Format, of: str) -> Exported:
    """Write the backbone of a run, or of a checkpoint in its folder, and a card.

    A UserError, and nothing on disk, where features differ.
    """
    exporter, is_folder = EXPORTERS[format], format is Format.timm
    exporter.check()
    _check_place(to, is_folder)
    run = open_run(path, registry)
    subject = backbone_to_export(run, of)
    temporary = to.with_name(f"{to.name}.tmp")
    described = temporary / "README.md" if is_folder else to.with_name(f"{to.name}.md.tmp")
    try:
        _remove(temporary)
        lines = exporter.write(subject, temporary, to)
        difference = check_round_trip(subject, lambda: exporter.read(subject, temporary))
        text = card(run, subject, of=of, lines=lines, difference=difference)
        described.write_text(text, encoding="utf-8")
        temporary.replace(to)
        if is_folder:
            return Exported(tuple(sorted(to.iterdir())), lines, difference)
        beside = described.replace(to.with_name(f"{to.name}.md"))
        return Exported((to, beside), lines, difference)
    finally:
        _remove(temporary)
        described.unlink(missing_ok=True)


def _check_place(to: Path, is_folder: bool) -> None:
    if not to.parent.is_dir():
        raise UserError(f"--to {to}: there is no folder {to.parent}")
    if is_folder and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError(f"--to {to}: is there already; remove it, or name another folder")
    if not is_folder and to.is_dir():
        raise UserError(f"--to {to}: is a folder; --format timm writes one")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
