"""TorchScript: a traced network that torch loads without any other package, from C++ too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.exports.exported_backbone import ExportedBackbone


def check() -> None:
    """Nothing is wanted that is not there."""


def write(subject: ExportedBackbone, into: Path, to: Path) -> str:
    """Write the file; return the lines that load it as `to`."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # That tracing is old, and that sizes become constants: whether it went well is measured.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(subject.whole(), torch.zeros(2, *subject.shape), check_trace=False)
            torch.jit.save(traced, str(into))
    except Exception as error:
        raise UserError(f"backbone {subject.name!r} cannot be traced ({first_line(error)})") from error
    channels, height, width = subject.shape
    return (
        "import torch\n"
        f"model = torch.jit.load({str(to)!r})\n"
        f"features = model(images)  # float32 [N, {channels}, {height}, {width}] in 0..1"
    )


def read(subject: ExportedBackbone, written: Path) -> Callable[[Tensor], Tensor]:
    """Images in 0..1 to features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.load(str(written))
