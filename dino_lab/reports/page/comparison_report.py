"""The report of several runs or of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.reports import theme
from dino_lab.reports.page.chart import draw
from dino_lab.reports.page.html import page
from dino_lab.reports.page.run_curves import RunRows, comparison_charts, numbers_without_chart
from dino_lab.reports.study.claims import CLAIM_HEADERS
from dino_lab.reports.study.comparison import study_of
from dino_lab.reports.study.effects import EFFECT_HEADERS
from dino_lab.reports.study.figures import draw_figures
from dino_lab.reports.study.findings import Findings, findings
from dino_lab.reports.study.results import ArmResult, read_results
from dino_lab.reports.study.table import HEADERS, filled
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.rows import scores
from dino_lab.runs.status import read_status
from dino_lab.runs.study import FILE, Study
from dino_lab.spec.literal import inline

MOST_RUNS = 60  # whose curves are drawn
TITLES = {
    "effects": "What each setting does: arms as points, their mean with its 95 % interval",
    "heat": "Two settings at once, mean over the others",
    "interaction": "One setting by another: where lines are not parallel, one depends on the other",
    "parallel": "Each arm as a line through its settings to its score; the best are strongest",
}


@dataclass(frozen=True)
class SweepFigure:
    """A picture of a sweep, and its natural width in pixels."""

    title: str
    svg: Markup
    width: int


@dataclass(frozen=True)
class Member:
    """One run of an arm."""

    arm: str
    seed: int
    series: int  # of its arm
    path: Path
    rows: list[dict[str, float]]

    @property
    def scores(self) -> dict[str, float]:
        """The last of each."""
        return {name: value for row in self.rows for name, value in scores(row).items()}


def comparison_report(paths: Sequence[Path], registry: Registry, metric: str | None) -> tuple[str, list[str]]:
    """The page, and what had to be left out of it, one line each."""
    import matplotlib

    study = _study(paths, registry, metric)
    members, left_out = _members(study)
    results = read_results(study)
    found = findings(study, results)
    with matplotlib.rc_context(theme.settings()):
        # What runs beside a sweep change is not on its axes.
        figures = _figures(study, results) if all(map(_is_sweep, paths)) else []
        drawn = [RunRows(f"{m.arm} seed {m.seed}", m.series, m.rows) for m in members[:MOST_RUNS]]
        curves = [draw(chart, legend=False) for chart in comparison_charts(drawn, study.metric)]
    if len(members) > MOST_RUNS:
        left_out.append(f"curves of {len(members) - MOST_RUNS} of {len(members)} runs")
    text = page(
        "comparison.html.j2",
        title=study.name
        if len(paths) == 1
        else f"{len(paths)} runs and sweeps"
        if _sweeps(paths)
        else f"{len(paths)} runs",
        study=study,
        arms=_arm_table(found),
        effects=(EFFECT_HEADERS, found.effect_rows),
        claims=filled(CLAIM_HEADERS, [claim.cells() for claim in found.claims]),
        runs=_run_table(members, study.metric, numbers_without_chart(drawn)),
        found=found,
        figures=figures,
        charts=curves,
        left_out=left_out,
    )
    return text, left_out


def _figures(study: Study, results: Sequence[ArmResult]) -> list[SweepFigure]:
    """Those of a sweep; its curves are drawn with all the others."""
    drawn = [(name, figure) for name, figure in draw_figures(study, results) if name in TITLES]
    return [
        SweepFigure(TITLES[name], theme.inline_svg(figure, TITLES[name]), round(figure.get_figwidth() * 96))
        for name, figure in drawn
    ]


def _study(paths: Sequence[Path], registry: Registry, metric: str | None) -> Study:
    if _sweeps(paths):
        return study_of(paths, registry, metric)
    scored = any(scores(row) for path in paths for row in RunFolder(path).rows())
    # Without evaluators there is still the loss.
    study = (
        study_of(paths, registry, metric) if metric or scored else study_of(paths, registry, "loss", "min")
    )
    names = [arm.label.partition(" ")[0] for arm in study.arms]
    if len(set(names)) < len(names):
        return study
    arms = tuple(replace(arm, label=name) for arm, name in zip(study.arms, names, strict=True))
    return replace(study, baseline=names[0], arms=arms)


def _sweeps(paths: Sequence[Path]) -> bool:
    return any(map(_is_sweep, paths))


def _is_sweep(path: Path) -> bool:
    return (path / FILE).exists()


def _members(study: Study) -> tuple[list[Member], list[str]]:
    members, left_out = [], []
    for series, arm in enumerate(study.arms):
        for seed, path in arm.folders.items():
            if not path.is_dir():
                left_out.append(f"{arm.label} seed {seed}: {path} is not there; it has not run, or was moved")
                continue
            try:
                members.append(Member(arm.label, seed, series, path, RunFolder(path).rows()))
            except UserError as error:
                left_out.append(f"{arm.label} seed {seed}: {error}")
    if not any(member.rows for member in members):
        raise UserError(f"{study.name}: none of its runs has a row")
    return members, left_out


def _arm_table(found: Findings) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, a line for each arm with what it sets, and a line for each floor."""
    axes = [axis for axis in found.study.axes if axis != "variant"]
    arms, floors = (
        [[*line.cells(), *(_said(line.settings[axis]) for axis in axes)] for line in lines]
        for lines in (found.lines, found.floors)
    )
    return [*HEADERS, *axes], arms, floors


def _said(value: Any) -> str:
    return "" if value is None else inline(value)


def _run_table(
    members: Sequence[Member], metric: str, others: Sequence[str]
) -> tuple[list[str], list[tuple[Member, list[str]]]]:
    """Headings, and a line for each run with its last numbers; of the scores the metric comes first."""
    names = sorted({name for member in members for name in member.scores}, key=lambda x: (x != metric, x))
    table = []
    for member in members:
        status = read_status(member.path)
        last = {key: value for row in member.rows for key, value in row.items()}
        cells = [
            member.arm,
            str(member.seed),
            *(f"{last[name]:.4f}" if name in last else "" for name in (*names, "loss")),
            *(f"{last[name]:.5g}" if name in last else "" for name in others),
            f"{last.get('epoch', 0):g}",
            status.verdict if status.state == "finished" else status.state,
            str(member.path),
        ]
        table.append((member, cells))
    return ["arm", "seed", *names, "loss", *others, "epochs", "ended", "folder"], table
