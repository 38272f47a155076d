"""Everything that a study leaves in its folder."""

from __future__ import annotations

from pathlib import Path

from dino_lab.reports.figures import write_figures
from dino_lab.reports.results import read_results
from dino_lab.reports.study import Study
from dino_lab.reports.tables import Line, lines, write_tables


def write_report(study: Study, folder: Path) -> list[Line]:
    """Read the runs, write study.json, tables and pictures; the lines of the table."""
    study.write(folder)
    results = read_results(study)
    found = lines(study, results)
    write_tables(study, found, folder)
    write_figures(study, results, folder)
    return found
