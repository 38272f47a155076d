"""The folder that a run leaves: `runs/<name>/<hash of the spec>/`.

spec.yaml            the resolved spec, every default written out
env.json             versions, plugins, git commit, hardware
rows.jsonl           one row of numbers a line
events.out.*         the same for TensorBoard
last.pt              step and state of every part; replaced as a whole or not at all
backbone.safetensors the features that were learned, for plain timm
evaluations/<step>/  pictures and other files of the evaluators
result.json          how it ended; there once the run is finished
"""

from __future__ import annotations

import copy
import fcntl
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dino_lab.errors import UserError, first_line
from dino_lab.registry import Registry
from dino_lab.spec.file import load_text
from dino_lab.spec.model import Spec

CHECKPOINT_FORMAT = 1


class RunFolder:
    """Reads and writes the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = path / "last.pt"
        self.backbone = path / "backbone.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it; the lock goes with the process, however that ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.path}: another process is running this spec; wait for it, or change the spec"
                ) from None
            yield

    def spec(self, registry: Registry) -> Spec:
        """The spec as run."""
        return load_text(self._read("spec.yaml"), str(self.path / "spec.yaml"), registry=registry).spec

    def result(self) -> dict[str, Any] | None:
        """How the run ended, or None while it has not."""
        file = self.path / "result.json"
        return json.loads(file.read_text()) if file.exists() else None

    def rows(self) -> list[dict[str, float]]:
        """Every whole line of rows.jsonl; a line that a kill cut in half is left out."""
        file = self.path / "rows.jsonl"
        if not file.exists():
            return []
        return [
            json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]

    def write_text(self, name: str, text: str) -> None:
        """Write a file as a whole or not at all."""
        replace_file(self.path / name, text.encode())

    def write_evaluation(self, step: int, name: str, content: bytes) -> None:
        """Write a file that an evaluator leaves after so many steps."""
        folder = self.path / "evaluations" / f"{step:06}"
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / name, content)

    def append_row(self, row: dict[str, float]) -> None:
        """Add one line to rows.jsonl."""
        with (self.path / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def keep_rows(self, step: int) -> list[dict[str, float]]:
        """Forget rows after `step`, which a resumed run will write again; return those that stay."""
        rows = [row for row in self.rows() if row["step"] <= step]
        self.write_text("rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def save(self, spec_hash: str, step: int, state: dict[str, Any]) -> None:
        """Write last.pt."""
        buffer = io.BytesIO()
        torch.save({"format": CHECKPOINT_FORMAT, "spec": spec_hash, "step": step, **_own(state)}, buffer)
        replace_file(self.checkpoint, buffer.getbuffer())

    def load(self, spec_hash: str, device: torch.device) -> dict[str, Any] | None:
        """The state that `save` wrote, or None where there is none."""
        if not self.checkpoint.exists():
            return None
        try:
            state = torch.load(self.checkpoint, map_location=device, weights_only=True)
            found = (state["format"], state["spec"])
        except Exception as error:
            raise UserError(
                f"{self.checkpoint}: not a whole checkpoint ({first_line(error)}); "
                "delete it to start this run anew"
            ) from error
        if found != (CHECKPOINT_FORMAT, spec_hash):
            raise UserError(
                f"{self.checkpoint}: belongs to spec {found[1]} (format {found[0]}), not to {spec_hash} "
                f"(format {CHECKPOINT_FORMAT}); move it away to start this run anew"
            )
        return state

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError as error:
            raise UserError(f"{self.path}: no run lies here ({name}: {error.strerror})") from None


def _own(state: Any) -> Any:
    """The same without what lies beside a tensor: torch writes all that a view is a part of."""
    if isinstance(state, torch.Tensor):
        return state.clone() if state.untyped_storage().nbytes() > state.nbytes else state
    if not isinstance(state, dict | list):
        return state
    own = copy.copy(state)  # with what a module notes beside its state
    for key, value in state.items() if isinstance(state, dict) else enumerate(state):
        own[key] = _own(value)
    return own


def replace_file(target: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole or not at all."""
    temporary = target.with_name(f"{target.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
