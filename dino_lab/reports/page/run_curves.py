"""The charts of the rows of runs, and the numbers that have no course."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dino_lab.reports.page.chart import DASHES, Chart, ChartFloor, ChartLine
from dino_lab.runs.rows import REGULARIZER, scores
from dino_lab.training.diagnostics import Floors

Row = dict[str, float]
MOST_LINES = 6  # of a chart of one run

# Number of a row, title, unit of the axis, what it says; in the order of the page.
_LOSS = ("loss", "Loss", "loss", "The loss without regularizers. Entropy and KL say what it means.")
_KNOWN: tuple[tuple[str, str, str, str], ...] = (
    ("entropy", "Entropy of the target", "nats", "At ln K the teacher gives every output the same weight."),
    ("kl", "KL of target and student", "nats", "What is left to learn; 0 in a collapse."),
    (
        "effective_rank",
        "Effective rank of the features",
        "dimensions",
        "RankMe of a batch of the student's features.",
    ),
    (
        "feature_spread",
        "Standard deviation of the features",
        "of unit-length features",
        "0: every image has the same features. 1: they fill the sphere evenly.",
    ),
    ("outputs_in_use", "Outputs in use", "outputs", "Exponential of the entropy of the mean target."),
    ("lr", "Learning rate", "learning rate", ""),
    ("weight_decay", "Weight decay", "weight decay", ""),
    ("gradient_norm", "Norm of the gradient", "L2 norm", "Before clipping."),
    ("center_norm", "Norm of the mean teacher output", "L2 norm", ""),
    ("images_per_second", "Speed", "images / s", ""),
    ("data_wait", "Waiting for images", "share of the time", ""),
)
_NOT_DRAWN = {"step", "epoch", "entropy_max"}


@dataclass(frozen=True)
class RunRows:
    """The rows of one run among others."""

    name: str
    series: int
    rows: Sequence[Row]


@dataclass(frozen=True)
class SingleNumber:
    """A number that has no course: it is in a single row, or a setting that never changes."""

    title: str
    value: float
    epoch: float  # of the last row that has it


def run_charts(rows: Sequence[Row], floors: Floors | None = None) -> list[Chart]:
    """Loss, scores and diagnostics of one run, then whatever else its rows hold, if it has a course.

    `floors` are those of the scores: thin lines beside their curves.
    """
    found = {key for row in rows for key in row} - _NOT_DRAWN
    charts = [_of_number(*_LOSS, [RunRows("loss", 0, rows)])] if "loss" in found else []
    charts += _of_scores(rows, floors or {})
    for key, title, unit, note in _all_numbers(found):
        if not _is_constant(key, rows):
            charts.append(_of_number(key, title, unit, note, [RunRows(title, 0, rows)]))
    return [chart for chart in charts if chart.has_course]


def single_numbers(rows: Sequence[Row]) -> list[SingleNumber]:
    """The numbers of the rows of one run for which `run_charts` has no chart, without scores."""
    found = {key for row in rows for key in row} - _NOT_DRAWN
    singles = []
    for key, title, *_ in [_LOSS] * ("loss" in found) + _all_numbers(found):
        line = _line(title, key, rows, 0)
        if _is_constant(key, rows) or not Chart("", "", (line,)).has_course:
            singles.append(SingleNumber(title, line.y[-1], line.x[-1]))
    return singles


def _is_constant(key: str, rows: Sequence[Row]) -> bool:
    """Whether a number is a setting that never changes in a run."""
    return key == "weight_decay" and len({row[key] for row in rows if key in row}) == 1


def comparison_charts(runs: Sequence[RunRows], metric: str) -> list[Chart]:
    """The same numbers of several runs, one line each: scores first, and the metric before the others.

    Only numbers that have a course in at least one run.
    """
    found = {key for run in runs for row in run.rows for key in row} - _NOT_DRAWN
    names = sorted({key for run in runs for row in run.rows for key in scores(row)})
    names.sort(key=lambda name: name != metric)
    entries = [(name, name, "score", "") for name in names]
    entries += [_LOSS] if "loss" in found else []
    entries += _all_numbers(found)
    charts = (_of_number(*entry, runs) for entry in entries)
    return [chart for chart in charts if chart.has_course]


def numbers_without_chart(runs: Sequence[RunRows]) -> list[str]:
    """The numbers for which `comparison_charts` has no chart, by their keys, without loss and scores."""
    found = {key for run in runs for row in run.rows for key in row} - _NOT_DRAWN
    return [entry[0] for entry in _all_numbers(found) if not _of_number(*entry, runs).has_course]


def _all_numbers(found: set[str]) -> list[tuple[str, str, str, str]]:
    """Known numbers in their order, then the others by name, but no loss and no scores."""
    known = [entry for entry in _KNOWN if entry[0] in found]
    others = sorted(
        found - {entry[0] for entry in _KNOWN} - {"loss"} - scores(dict.fromkeys(found, 0.0)).keys()
    )
    titles = [
        (key, f"Regularizer {key.removeprefix(REGULARIZER)}" if key.startswith(REGULARIZER) else key)
        for key in others
    ]
    return known + [(key, title, "value", "") for key, title in titles]


def _of_number(key: str, title: str, unit: str, note: str, runs: Sequence[RunRows]) -> Chart:
    lines = tuple(_line(run.name, key, run.rows, run.series) for run in runs)
    level = _level([row for run in runs for row in run.rows]) if key == "entropy" else None
    return Chart(title, unit, tuple(line for line in lines if line.x), level=level, note=note)


def _level(rows: Sequence[Row]) -> tuple[float, str] | None:
    """The line at ln K, where all runs have the same number of outputs."""
    levels = {round(row["entropy_max"], 5) for row in rows if "entropy_max" in row}
    return (level := levels.pop(), f"ln K = {level:.2f}") if len(levels) == 1 else None


def _of_scores(rows: Sequence[Row], floors: Floors) -> Iterator[Chart]:
    """Shares of one evaluator together, every other score by itself: their units differ."""
    names = list(dict.fromkeys(key for row in rows for key in scores(row)))
    shares = [name for name in names if all(-1 <= row[name] <= 1 for row in rows if name in row)]
    for evaluator, group in itertools.groupby(sorted(shares, key=_evaluator), key=_evaluator):
        members = list(group)
        for some in (members[i : i + MOST_LINES] for i in range(0, len(members), MOST_LINES)):
            lines = [_line(name.partition(".")[2], name, rows, i) for i, name in enumerate(some)]
            yield Chart(f"Scores of {evaluator}", "score", tuple(lines), **_beside(some, floors))
    for name in names:
        if name not in shares:
            yield Chart(name, "score", (_line(name, name, rows, 0),))


def _beside(names: Sequence[str], floors: Floors) -> dict[str, Any]:
    """Thin lines for the floors of some scores; those at one height for all of them are one line."""
    kinds = list(dict.fromkeys(kind for name in names for kind in floors.get(name, {})))
    drawn = []
    for dashes, kind in enumerate(kinds):
        heights = {i: floors[name][kind] for i, name in enumerate(names) if kind in floors.get(name, {})}
        shared = len(set(heights.values())) == 1 and len(heights) == len(names) > 1
        series = {None: heights[0]} if shared else heights
        drawn += [ChartFloor(height, dashes, one) for one, height in series.items()]
    styles = ", ".join(f"{kind} {DASHES[i % len(DASHES)][0]}" for i, kind in enumerate(kinds))
    return {"floors": tuple(drawn), "note": f"Thin lines: {styles}." if kinds else ""}


def _evaluator(name: str) -> str:
    return name.partition(".")[0]


def _line(name: str, key: str, rows: Sequence[Row], series: int) -> ChartLine:
    points = [(row["epoch"], row[key]) for row in rows if key in row]
    return ChartLine(name, [x for x, _ in points], [y for _, y in points], series)
