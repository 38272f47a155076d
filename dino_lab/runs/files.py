"""Names of the files in a run's folder (see folder.py), and files written as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

IDENTITY, SPEC, ENVIRONMENT = "identity.json", "spec.yaml", "env.json"
ROWS, STATUS, EVALUATIONS = "rows.jsonl", "status.json", "evaluations"
LAST, PREVIOUS, BACKBONE = "last.pt", "previous.pt", "backbone.safetensors"
LEARNED = "learned.png"
KEPT = "epoch_{}.pt"  # the checkpoint after an epoch of `train.keep`
BEST = "best.pt"  # that of the highest score, of `train.keep_best`


def replace_file(target: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole or not at all; it is on the disk when this returns."""
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Put the names of a folder on the disk, as far as its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some file systems refuse this of folders
    finally:
        os.close(descriptor)
