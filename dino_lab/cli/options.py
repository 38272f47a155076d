"""Options that several verbs share, and what their text means."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dino_lab.errors import UserError

CHECKPOINT_SECONDS = 60.0  # between two checkpoints, where nothing else is said


class Of(StrEnum):
    """Whose weights."""

    teacher = "teacher"
    student = "student"


def spec_file(path: Path | None) -> Path | None:
    """A file that is there, or the one that comes with the package and has that name; else a UserError."""
    if path is None or os.path.exists(path):
        return path
    from dino_lab.registry import suggest
    from dino_lab.spec.shipped import experiments, find

    if not path.suffix:
        if (shipped := find(str(path))) is None:
            hint = suggest(str(path), [*experiments(), *(name.rpartition("/")[2] for name in experiments())])
            raise UserError(
                f"{path}: no such file, and no experiment that comes with dino-lab{hint} "
                "(see: dino-lab list experiments)"
            )
        return shipped
    if find(path.stem) is not None:
        raise UserError(
            f"{path}: no such file; {path.stem!r}, without folder and suffix, comes with dino-lab"
        )
    return path


SpecPath = Annotated[
    Path,
    typer.Argument(
        metavar="SPEC",
        callback=spec_file,
        help="The YAML file of the experiment, or the name of one that comes with dino-lab.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one value, e.g. optim.lr=1e-4; repeatable."),
]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Import components from this file first; repeatable."),
]
Runs = Annotated[Path, typer.Option(metavar="DIR", help="Where run folders are made.")]
CheckpointEvery = Annotated[
    float, typer.Option(metavar="SECONDS", min=0, help="Time between two checkpoints of a run.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Exit with 1 unless every claim of the sweep file is as expected.")
]
Processes = Annotated[
    str | None,
    typer.Option(
        metavar="N|gpu",
        help="Processes that train the run together; gpu: one for each GPU. [default: one]",
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N. [default: cuda where there is one, else cpu]"),
]
