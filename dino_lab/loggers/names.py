"""The loggers by name. Imports nothing, so that the command line may."""

from __future__ import annotations

from enum import StrEnum


class LoggerName(StrEnum):
    """A file of this folder, and an extra of the package."""

    wandb = "wandb"
    mlflow = "mlflow"
    trackio = "trackio"
