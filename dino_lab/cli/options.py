"""Options that several verbs share, and what their text means."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

CHECKPOINT_SECONDS = 60.0  # between two checkpoints, where nothing else is said


class Of(StrEnum):
    """Whose weights."""

    teacher = "teacher"
    student = "student"


SpecPath = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file of the experiment.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. optim.lr=1e-4; repeatable."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Import components from this file first; repeatable."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N. [default: cuda where there is one, else cpu]"),
]
