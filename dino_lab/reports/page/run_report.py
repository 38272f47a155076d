"""The report of one run."""

from __future__ import annotations

from pathlib import Path

import torch

from dino_lab.imaging.pictures import address_of
from dino_lab.registry import Registry
from dino_lab.reports import theme
from dino_lab.reports.page.base_spec import base_spec_of
from dino_lab.reports.page.chart import draw
from dino_lab.reports.page.evaluator_files import read_evaluator_files
from dino_lab.reports.page.html import page
from dino_lab.reports.page.network_section import draw_pictures
from dino_lab.reports.page.run_curves import run_charts, single_numbers
from dino_lab.reports.page.run_facts import environment_rows, protocols, read_facts
from dino_lab.runs.checkpoint import folder_of_run
from dino_lab.runs.files import LEARNED
from dino_lab.spec.file import dump_yaml


def run_report(path: Path, registry: Registry, device: torch.device) -> tuple[str, list[str]]:
    """The page, and what had to be left out of it, one line each.

    `path` is the folder of the run, or one of its checkpoints, whose networks are then shown.
    """
    import matplotlib

    folder = folder_of_run(path)
    facts = read_facts(folder, registry)
    with matplotlib.rc_context(theme.settings()):
        pictures = draw_pictures(path, registry, device)
        charts = [draw(chart) for chart in run_charts(facts.rows, facts.floors)]
        files = read_evaluator_files(folder)
        file_charts = {file.title: [draw(chart) for chart in file.charts] for file in files.shown}
    left_out = [*pictures.left_out, *files.left_out]
    if not facts.rows:
        left_out.append("curves and scores: there are no rows yet (rows.jsonl)")
    if not facts.environment:
        left_out.append("environment: there is no env.json")
    text = page(
        "run.html.j2",
        facts=facts,
        base=base_spec_of(facts.spec, facts.environment, registry),
        spec_yaml=dump_yaml(facts.spec),
        protocols=protocols(facts, registry),
        environment=list(environment_rows(facts.environment)),
        charts=charts,
        singles=single_numbers(facts.rows),
        pictures=pictures,
        learned=_learned(folder),
        files=files.shown,
        file_charts=file_charts,
        left_out=left_out,
    )
    return text, left_out


def _learned(path: Path) -> str:
    """The picture that the run drew at its end, as an address that holds it, or nothing."""
    try:
        content = (path / LEARNED).read_bytes()
    except OSError:
        return ""
    return address_of(content, "image/png")
