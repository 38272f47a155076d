"""The verbs that read what is there: compare and best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_lab.cli.options import Check, Plugins
from dino_lab.errors import UserError
from dino_lab.registry.plugin_files import load_plugins


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs or sweeps, or folders that hold runs."),
    ],
    metric: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Of the rows. [default: the sweep's, else 20-NN]")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write tables and pictures into this folder.")
    ] = None,
    check: Check = False,
    plugin: Plugins = None,
) -> None:
    """Compare runs or whole sweeps in one table.

    Runs whose specs differ in the seed alone are one line; the first is what differences are told to.
    """
    load_plugins(plugin)
    from dino_lab.cli.sweep_text import print_study
    from dino_lab.registry import registry
    from dino_lab.reports.arguments import with_runs_below
    from dino_lab.reports.study.comparison import study_of
    from dino_lab.reports.study.files import write_study
    from dino_lab.reports.study.findings import findings
    from dino_lab.reports.study.results import read_results

    study = study_of(with_runs_below(folders), registry, metric)
    if check and not study.expect:
        raise UserError("--check: none of these sweeps has claims; they are recorded when a sweep runs")
    found = findings(study, read_results(study)) if to is None else write_study(study, to)
    if not any(line.score for line in found.lines):
        raise UserError(f"none of these runs has ended with a {study.metric}")
    print_study(found)
    if to is not None:
        print(f"files in {to}")
    if check and found.unshown:
        raise typer.Exit(1)


def best(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEP", help="The folder of a sweep.")],
    copy_to: Annotated[
        Path | None, typer.Option("--copy-to", metavar="FILE.yaml", help="Write its spec here.")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Say which arm of a sweep has the best mean score, and give its spec."""
    load_plugins(plugin)
    from dino_lab.registry import registry
    from dino_lab.reports.study import comparison
    from dino_lab.reports.study.estimate import estimate
    from dino_lab.reports.study.results import read_results
    from dino_lab.runs.folder import RunFolder
    from dino_lab.runs.study import read_study
    from dino_lab.spec.file import dump_yaml

    study = read_study(sweep)
    ranked = comparison.best(study, read_results(study))
    arm, score = ranked[0].arm, estimate(list(ranked[0].scores.values()))
    assert score is not None
    half = "" if score.half is None else f" ± {score.half:.4f}"
    print(f"{arm.label}: {study.metric} {score.mean:.4f}{half} over {score.n} of {len(arm.folders)} seed(s)")
    for sentence in comparison.doubts(study, ranked):
        print(f"  {sentence}")
    for warning in comparison.warnings(study, ranked):
        print(f"  warning: {warning}")
    folder = arm.folders[min(arm.folders)]
    print(folder)
    if copy_to is not None:
        if copy_to.exists():
            raise UserError(f"--copy-to {copy_to}: is there already")
        spec = RunFolder(folder).spec(registry)
        head = f"# {arm.label}, of the sweep {study.name}: {study.metric} {score.mean:.4f}{half}\n"
        copy_to.write_text(head + dump_yaml(spec))
        print(f"written to {copy_to}")
