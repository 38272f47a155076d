"""The verb that gives a trained backbone away: export."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Of, Plugins
from dino_lab.errors import UserError
from dino_lab.exports.formats import Format, choose_format
from dino_lab.registry.plugin_files import load_plugins

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run's folder, or a checkpoint in it (best.pt, epoch_3.pt).")
]


def export(
    run: Run,
    to: Annotated[Path, typer.Option(metavar="PATH", help="The file to write; of format timm, the folder.")],
    format_: Annotated[
        Format | None,
        typer.Option(
            "--format", help="What to write. [default: what the ending of PATH says; timm if it has none]"
        ),
    ] = None,
    of: Annotated[Of, typer.Option(help="Whose backbone.")] = Of.teacher,
    plugin: Plugins = None,
) -> None:
    """Write a run's backbone for timm, ONNX or TorchScript.

    A card lies beside it, with scores and spec. It is kept only if it gives the features of the run.
    """
    _must_exist(run)
    chosen = choose_format(to, format_)
    load_plugins(plugin)
    from dino_lab.exports.export import export as write
    from dino_lab.registry import registry

    gc.enable()  # see __main__.py
    done = write(run, registry, to=to, format=chosen, of=of.value)
    print(f"wrote {', '.join(map(str, done.files))}")
    print(f"its features are the run's, to {done.difference:.1e} of the largest; it is loaded by\n")
    print(done.lines)


def _must_exist(run: Path) -> None:
    if run.is_dir():
        return
    from dino_lab.runs.checkpoint import is_checkpoint  # imports torch

    if not is_checkpoint(run):
        raise UserError(f"{run}: neither the folder of a run nor a checkpoint in one")
