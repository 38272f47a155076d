"""ONNX, for other runtimes than torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.exports.exported_backbone import ExportedBackbone
from dino_lab.extras import want


def check() -> None:
    """A UserError where a package is missing."""
    for module in ("onnx", "onnxscript", "onnxruntime"):
        want(module, "onnx", "--format onnx")


def write(subject: ExportedBackbone, into: Path, to: Path) -> str:
    """Write the file, any number of images at once; return the lines that load it as `to`."""
    example = torch.zeros(2, *subject.shape)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of exporter and operators: whether it went well is measured
            torch.onnx.export(
                subject.whole(),
                (example,),
                into,
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                external_data=False,
                verbose=False,
            )
    except Exception as error:
        raise UserError(
            f"backbone {subject.name!r} cannot be written as ONNX ({first_line(error)})"
        ) from error
    channels, height, width = subject.shape
    return (
        "import onnxruntime\n"
        f"session = onnxruntime.InferenceSession({str(to)!r})\n"
        "features = session.run(None, {'images': images})[0]"
        f"  # float32 [N, {channels}, {height}, {width}] in 0..1"
    )


def read(subject: ExportedBackbone, written: Path) -> Callable[[Tensor], Tensor]:
    """Images in 0..1 to features, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(written), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
