"""Weights & Biases: offline, unless WANDB_MODE says online."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dino_lab.extras import want
from dino_lab.loggers.logger import PROJECT, About


class WandbLogger:
    """A run of W&B whose id is the spec's hash; WANDB_PROJECT, WANDB_ENTITY and the like are its own."""

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to its makers
        self._wandb: Any = want("wandb", "wandb", "--log wandb")

    def start(self, about: About) -> str:
        """Begin, or go on: of rows that were sent already W&B keeps the first."""
        mode = os.environ.get("WANDB_MODE", "offline")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=about.hash,
            name=about.name,
            group=about.group,
            config=dict(about.spec),
            dir=str(about.folder),
            mode=mode,
            # Offline nothing is known of earlier sessions; `wandb sync --id` puts them together.
            resume="allow" if mode == "online" else None,
            settings=self._wandb.Settings(silent=True, console="off", save_code=False),
        )
        if mode == "online":
            return str(self._run.url)
        return f"offline; `wandb sync --id {about.hash} {about.folder / 'wandb'}/offline-run-*` sends it"

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        """One step of W&B."""
        self._run.log(dict(numbers), step=step)

    def finish(self, status: str) -> None:
        """Wait until everything is written."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == "finished" else 1)
