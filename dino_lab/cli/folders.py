"""The verbs about run folders: eval and export."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Device, Of, Plugins, choose_device
from dino_lab.errors import UserError
from dino_lab.plugin_file import load_plugins

Folder = Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="As `run` prints it.")]


def eval_(
    folder: Folder,
    of: Annotated[Of | None, typer.Option(help="Whose features, for every evaluator.")] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Score a run with the evaluators of its spec."""
    _must_exist(folder)
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.training.evaluate import evaluate

    target = choose_device(device)
    gc.enable()  # see __main__.py
    for scored in evaluate(folder, registry, target, of=None if of is None else of.value):
        for name, value in scored.named_scores.items():
            print(f"{name}  {value:.4f}")
        print(f"  {scored.protocol}")


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
