"""The verb about run folders: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Of, Plugins
from dino_lab.errors import UserError
from dino_lab.plugin_file import load_plugins

Folder = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="As `run` prints it.")]


def export(
    folder: Folder,
    to: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="The file to write.")],
    of: Annotated[Of, typer.Option(help="Whose backbone.")] = Of.teacher,
    plugin: Plugins = None,
) -> None:
    """Write a run's backbone for plain timm."""
    _must_exist(folder)
    if to.suffix != ".safetensors":
        raise UserError(f"--to {to}: should end in .safetensors")
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.training.export import export as write

    lines = write(folder, registry, to=to, of=of.value)
    print(f"wrote {to}; it is loaded by\n")
    print(lines)


def _must_exist(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
