"""The verb that compares two specs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_lab.cli.options import Plugins, spec_file
from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.files import SPEC

if TYPE_CHECKING:
    from dino_lab.spec.model import Spec

SpecOrRun = Annotated[
    Path,
    typer.Argument(callback=spec_file, help="A YAML file, or the folder of a run.", show_default=False),
]


class DiffFormat(StrEnum):
    """How differences are written."""

    plain = "plain"
    markdown = "markdown"


def diff(
    old: SpecOrRun,
    new: SpecOrRun,
    format_: Annotated[
        DiffFormat | None, typer.Option("--format", help="[default: a table on a terminal, else plain]")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Say what differs between two specs, defaults written out.

    Without a difference there is one line that says so.
    """
    load_plugins(plugin)
    from dino_lab.cli.console import console, print_table
    from dino_lab.spec.difference import difference

    specs = [_spec(old), _spec(new)]
    rows = [[change.key, change.old, change.new] for change in difference(*specs)]
    titles = _titles(*specs)
    if not rows:
        print(f"no difference: {', '.join(titles)}")
    elif format_ is DiffFormat.markdown:
        for row in [["key", *titles], ["---"] * 3, *([f"`{cell}`" for cell in row] for row in rows)]:
            print(f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |")
    elif format_ is None and console().is_terminal:
        print_table(["key", *titles], rows)
    else:
        for key, before, after in rows:
            print(f"{key}: {before} -> {after}")


def _titles(*specs: Spec) -> list[str]:
    """Names, and where those are the same, hashes too."""
    names = [spec.name for spec in specs]
    return names if len(set(names)) == len(names) else [f"{spec.name} {spec.hash}" for spec in specs]


def _spec(path: Path) -> Spec:
    from dino_lab.registry import registry
    from dino_lab.runs.folder import RunFolder
    from dino_lab.spec.file import load

    if not path.is_dir():
        return load(path).spec
    if not (path / SPEC).exists():
        raise UserError(f"{path}: no run lies here (there is no spec.yaml)")
    return RunFolder(path).spec(registry)
