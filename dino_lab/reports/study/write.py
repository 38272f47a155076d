"""Everything that a study leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from dino_lab.reports.study.figures import write_figures
from dino_lab.reports.study.results import read_results
from dino_lab.reports.study.tables import Line, lines, write_tables
from dino_lab.runs.study import Study


def write_report(study: Study, folder: Path) -> list[Line]:
    """Read the runs, write study.json, tables and pictures; the lines of the table."""
    study.write(folder)
    results = read_results(study)
    found = lines(study, results)
    write_tables(study, found, folder)
    write_figures(study, results, folder)
    return found
