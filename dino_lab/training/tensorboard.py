"""Rows as TensorBoard events."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dino_lab.training.loop import Row


class Events:
    """Writes the numbers of each row under their own names; on a resumed run, from `step` on."""

    def __init__(self, folder: Path, step: int) -> None:
        # Events after `step` of an earlier session, which a checkpoint does not cover, are to be forgotten.
        earlier = any(folder.glob("events.out.tfevents.*"))
        self._writer = SummaryWriter(str(folder), purge_step=step + (step > 0) if earlier else None)

    def write(self, row: Row) -> None:
        """Add one row."""
        for name, value in row.numbers.items():
            self._writer.add_scalar(name.replace(".", "/"), value, row.step)

    def close(self) -> None:
        """Write what is not yet on disk."""
        self._writer.close()
