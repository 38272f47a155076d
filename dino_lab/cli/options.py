"""Options that several verbs share, and what their text means."""

from __future__ import annotations

import importlib.util
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.errors import UserError

if TYPE_CHECKING:
    import torch


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


def load_plugins(files: list[Path] | None) -> None:
    """Import each file, so that its components are registered; a UserError says which failed and why."""
    for file in files or []:
        if not file.is_file():
            raise UserError(f"--plugin {file}: no such file")
        name = f"dino_lab_plugin_{file.stem}"
        module_spec = importlib.util.spec_from_file_location(name, file)
        if module_spec is None or module_spec.loader is None:
            raise UserError(f"--plugin {file}: not a Python file; its name should end in .py")
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[name] = module  # get_type_hints and pickle look the module up by name
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--plugin {file}: {_where(error, file)}{reason}") from error


def _where(error: BaseException, file: Path) -> str:
    """`line N: ` of the innermost frame that is in `file`."""
    line, trace = getattr(error, "lineno", None), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f"line {line}: "


def choose_device(text: str | None) -> torch.device:
    """The device that is asked for, or cuda where there is one; a UserError if torch cannot use it."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text is None:
        return torch.device("cuda" if count else "cpu")
    kind, _, index = text.partition(":")
    if text != "cpu" and (kind != "cuda" or (":" in text and not index.isdecimal())):
        raise UserError(f"--device {text}: should be cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        there = f"{count} CUDA device(s), counted from 0" if count else "no CUDA device that torch can use"
        raise UserError(f"--device {text}: this machine has {there}")
    return torch.device(text)
