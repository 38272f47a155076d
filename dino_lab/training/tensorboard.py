"""Rows as TensorBoard events."""

from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dino_lab.training.loop import Row


class Events:
    """Writes the numbers of each row under their own names; on a resumed run, from `step` on."""

    def __init__(self, folder: Path, step: int) -> None:
        if step == 0:  # events of a session that no checkpoint covers, which is trained again
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, row: Row) -> None:
        """Add one row."""
        for name, value in row.numbers.items():
            self._writer.add_scalar(name.replace(".", "/"), value, row.step)

    def close(self) -> None:
        """Write what is not yet on disk."""
        self._writer.close()
