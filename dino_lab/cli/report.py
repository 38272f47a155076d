"""The verb that makes a page of runs and sweeps."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Device, Plugins
from dino_lab.errors import printable
from dino_lab.registry.plugin_files import load_plugins


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|SWEEP...",
            help="Folders of runs or sweeps; one run may be one of its checkpoints.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="The file to write. [default: report.html in the folder, of several here]",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Of the rows, by which several are compared. [default: the sweep's, else 20-NN]",
        ),
    ] = None,
    device: Device = None,
    plugin: Plugins = None,
) -> None:
    """Write one HTML file that shows a run, or compares several: curves, scores, pictures, spec.

    The file needs no network and no other file.
    """
    began = time.monotonic()
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.reports.arguments import one_run, sorted_out
    from dino_lab.reports.page.html import check_target
    from dino_lab.runs.checkpoint import folder_of_run
    from dino_lab.runs.files import replace_file

    paths = sorted_out(folders)
    check_target(target := to or (folder_of_run(paths[0]) if len(paths) == 1 else Path()) / "report.html")
    gc.enable()  # see __main__.py
    if one_run(paths):
        from dino_lab.building.execution import choose_device
        from dino_lab.reports.page.run_report import run_report

        text, left_out = run_report(paths[0], registry, choose_device(device))
    else:
        from dino_lab.reports.page.comparison_report import comparison_report

        text, left_out = comparison_report(paths, registry, metric)
    replace_file(target, text.encode())
    for line in left_out:
        print(f"left out: {printable(line)}")
    megabytes, seconds = target.stat().st_size / 1e6, time.monotonic() - began
    print(f"wrote {printable(str(target))}: {megabytes:.1f} MB, {seconds:.0f} s")
