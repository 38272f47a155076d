"""The formats, and which one a path means. Imports no torch, so that the command line may."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from dino_lab.errors import UserError


class Format(StrEnum):
    """What is written."""

    safetensors = "safetensors"
    timm = "timm"
    onnx = "onnx"
    torchscript = "torchscript"


SUFFIXES = {
    ".safetensors": Format.safetensors,
    "": Format.timm,
    ".onnx": Format.onnx,
    ".pt": Format.torchscript,
    ".ts": Format.torchscript,
    ".torchscript": Format.torchscript,
}


def choose_format(to: Path, given: Format | None) -> Format:
    """The format that is asked for, or that the path's suffix means; a UserError where they do not agree."""
    meant = SUFFIXES.get(to.suffix.lower())
    if given is None:
        if meant is None:
            ends = ", ".join(suffix for suffix in SUFFIXES if suffix)
            raise UserError(f"--to {to}: should end in {ends}, or in nothing for a folder; or say --format")
        return meant
    if given is not Format.timm and meant is not given:
        ends = " or ".join(suffix for suffix, its in SUFFIXES.items() if its is given)
        raise UserError(f"--to {to}: a file of format {given} should end in {ends}")
    return given
