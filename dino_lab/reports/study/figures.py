"""The pictures of a study, as SVG: what each axis does, two of them at once, and how the runs came there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_lab.reports.study.estimate import estimate, student
from dino_lab.reports.study.grid import Grid, grid_of
from dino_lab.reports.study.results import ArmResult
from dino_lab.runs.study import Study, short_value
from dino_lab.spec.literal import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 6  # numbers of an axis that are named one by one
_WIDE = 20  # last over first number, above which an axis is logarithmic
_PANELS = 3  # pairs of axes that are drawn
MOST_CURVES = 12  # arms with a name; of more, names hide the picture


def write_figures(study: Study, results: Sequence[ArmResult], folder: Path) -> list[Path]:
    """Every picture that the study has enough axes and scores for."""
    import matplotlib

    written: list[Path] = []
    with matplotlib.rc_context({"svg.hashsalt": study.name, "font.size": 9, "text.parse_math": False}):
        for name, figure in draw_figures(study, results):
            file = folder / f"{name}.svg"
            figure.savefig(file, metadata={"Date": None})
            written.append(file)
    for name in _PICTURES:  # of fewer arms, in the same folder
        if folder / f"{name}.svg" not in written:
            (folder / f"{name}.svg").unlink(missing_ok=True)
    return written


def draw_figures(study: Study, results: Sequence[ArmResult]) -> Iterator[tuple[str, Figure]]:
    """Names and pictures; matplotlib's settings are the caller's, until each is written."""
    scored = [arm for arm in results if arm.scores]
    for name, draw in _PICTURES.items():
        figure = draw(study, scored)
        if figure is not None:
            yield name, figure


def _effects(study: Study, arms: Sequence[ArmResult]) -> Figure | None:
    """One panel an axis: each arm a point, and the mean of all arms with that value."""
    axes = [axis for axis in study.axes if len(_values(axis, arms)) > 1]
    if not axes:
        return None
    figure = _figure(3.2 * len(axes) + 0.8, 3)
    for i, axis in enumerate(axes):
        panel = figure.add_subplot(1, len(axes), i + 1)
        values = _values(axis, arms)
        places = values if _is_range(values) else list(range(len(values)))
        for x, value in zip(places, values, strict=True):
            means = [_mean(arm) for arm in arms if arm.arm.settings.get(axis) == value]
            panel.plot([x] * len(means), means, "o", color="tab:blue", alpha=0.4, markersize=4)
            alone = [arm for arm in arms if arm.arm.settings.get(axis) == value]
            whole = estimate(list(alone[0].scores.values())) if len(alone) == 1 else estimate(means)
            if whole is not None:
                panel.errorbar(
                    [x], [whole.mean], yerr=[whole.half or 0.0], fmt="s", color="tab:red", capsize=4
                )
        if not _is_range(values):
            panel.set_xticks(places, [_name(value) for value in values], rotation=30, ha="right")
        elif _is_wide(values):
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
        panel.set_xlabel(axis)
        panel.set_ylabel(study.metric if i == 0 else "")
    return figure


def _heat(study: Study, arms: Sequence[ArmResult]) -> Figure | None:
    """The first two axes with several values that arms share: mean over whatever else differs."""
    axes = [axis for axis in study.axes if len(values := _values(axis, arms)) > 1 and not _is_range(values)]
    if len(axes) < 2:
        return None
    down, across = axes[:2]
    rows, columns = _values(down, arms), _values(across, arms)
    cells = [[_cell(arms, {down: row, across: column}) for column in columns] for row in rows]
    there = [cell for row in cells for cell in row if cell == cell]
    if not there:  # no arm says something on both, as where a sweep is compared with other runs
        return None
    figure = _figure(1.0 * len(columns) + 2, 0.7 * len(rows) + 1.4)
    panel = figure.add_subplot()
    panel.grid(False)
    shown = panel.imshow(cells, aspect="auto", cmap="viridis")
    middle = min(there) + 0.6 * (max(there) - min(there))
    for y, x in itertools.product(range(len(rows)), range(len(columns))):
        if cells[y][x] == cells[y][x]:
            # Viridis is dark below and light above.
            ink = "white" if cells[y][x] < middle else "black"
            panel.text(x, y, f"{cells[y][x]:.3f}", ha="center", va="center", color=ink)
    panel.set_xticks(range(len(columns)), [_name(value) for value in columns])
    panel.set_yticks(range(len(rows)), [_name(value) for value in rows])
    panel.set_xlabel(across)
    panel.set_ylabel(down)
    figure.colorbar(shown, label=study.metric)
    return figure


def _interaction(study: Study, arms: Sequence[ArmResult]) -> Figure | None:
    """One panel for two axes of a grid: a line for each value of the second, over the values of the first."""
    grid = grid_of(study, arms)
    if grid is None or grid.lacking or not grid.seeds:
        return None
    pairs = list(itertools.combinations(range(len(grid.factors)), 2))[:_PANELS]
    figure = _figure(3.6 * len(pairs) + 1.2, 3.2)
    for place, pair in enumerate(pairs):
        along, lines = (grid.factors[i] for i in pair)
        panel = figure.add_subplot(1, len(pairs), place + 1)
        means, halves = _within_seeds(grid, pair)
        order = _by_size(along.values)
        for line, j in enumerate(_by_size(lines.values)):
            shift = 0.06 * (line - (len(lines.values) - 1) / 2)
            panel.errorbar(
                [x + shift for x in range(len(order))],
                [means[i][j] for i in order],
                yerr=[halves[i][j] for i in order],
                fmt="o-",
                capsize=3,
                markersize=4,
                label=short_value(lines.values[j]),
            )
        panel.set_xticks(range(len(order)), [short_value(along.values[i]) for i in order])
        panel.set_xlabel(along.axis)
        panel.set_ylabel(study.metric if place == 0 else "")
        panel.legend(title=lines.axis, fontsize=7, title_fontsize=7)
    return figure


def _by_size(values: Sequence[Any]) -> list[int]:
    """Places of values: numbers by size, others as they come."""
    numbers = all(isinstance(value, (int, float)) for value in values)
    return sorted(range(len(values)), key=values.__getitem__) if numbers else list(range(len(values)))


def _within_seeds(grid: Grid, pair: tuple[int, int]) -> tuple[list[list[float]], list[list[float]]]:
    """Means, and half intervals, of each value of the first factor of a pair with each of the second.

    The intervals are of what differs between arms alone: each seed's mean over all arms is taken out of its
    scores (Cousineau, 2005), with the factor of Morey (2008).
    """
    others = tuple(i + 1 for i in range(len(grid.factors)) if i not in pair)
    scores = grid.scores.mean(axis=others) if others else grid.scores  # [seeds, first, second]
    centred = scores - scores.mean(axis=(1, 2), keepdims=True) + scores.mean()
    cells = scores.shape[1] * scores.shape[2]
    factor = math.sqrt(cells / (cells - 1))
    n = len(scores)
    half = factor * student(n - 1) * centred.std(axis=0, ddof=1) / math.sqrt(n) if n > 1 else 0 * scores[0]
    return scores.mean(axis=0).tolist(), half.tolist()


def _curves(study: Study, arms: Sequence[ArmResult]) -> Figure | None:
    """The metric over epochs, one line a run, one colour an arm."""
    if not any(len(result.curve) > 1 for arm in arms for result in arm.results.values()):
        return None
    figure = _figure(6.4, 3.8)
    panel = figure.add_subplot()
    for i, arm in enumerate(arms):
        for j, result in enumerate(arm.results.values()):
            epochs, values = zip(*result.curve, strict=True) if result.curve else ((), ())
            name = arm.arm.label if j == 0 else None
            panel.plot(epochs, values, color=f"C{i % 10}", alpha=0.8, linewidth=1, label=name)
    panel.set_xlabel("epoch")
    panel.set_ylabel(study.metric)
    if len(arms) <= MOST_CURVES:
        panel.legend(fontsize=7)
    return figure


def _parallel(study: Study, arms: Sequence[ArmResult]) -> Figure | None:
    """Parallel coordinates: an arm is a line through its values, the stronger the better its mean score."""
    axes = [axis for axis in study.axes if len(_values(axis, arms)) > 1]
    if len(axes) < 2:
        return None
    means = [_mean(arm) for arm in arms]
    low, high = min(means), max(means)
    figure = _figure(1.8 * (len(axes) + 1), 3.4)
    panel = figure.add_subplot()
    for arm, mean in zip(arms, means, strict=True):
        share = (mean - low) / (high - low) if high > low else 0.5
        heights = [_height(arm.arm.settings.get(axis), _values(axis, arms)) for axis in axes]
        better = share if study.mode == "max" else 1 - share
        drawn = [(x, height) for x, height in enumerate([*heights, share]) if not math.isnan(height)]
        panel.plot(
            *zip(*drawn, strict=True), color="tab:blue", alpha=0.3 + 0.7 * better, linewidth=1 + better
        )
    for x, axis in enumerate(axes):
        values = _values(axis, arms)
        for value in (values[0], values[-1]) if _is_range(values) else values:
            panel.text(x, _height(value, values), f" {_name(value)}", fontsize=8, va="bottom")
    panel.text(len(axes), 0.0, f" {low:.3f}", fontsize=8, va="bottom")
    panel.text(len(axes), 1.0, f" {high:.3f}", fontsize=8, va="bottom")
    panel.set_xticks(range(len(axes) + 1), [*axes, study.metric])
    panel.set_yticks([])
    panel.grid(True, axis="x")
    panel.spines[:].set_visible(False)
    return figure


_PICTURES: dict[str, Callable[[Study, Sequence[ArmResult]], Figure | None]] = {
    "effects": _effects,
    "heat": _heat,
    "interaction": _interaction,
    "curves": _curves,
    "parallel": _parallel,
}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _values(axis: str, arms: Sequence[ArmResult]) -> list[Any]:
    """What the arms say on an axis, each value once: numbers by size, else in the order of the arms."""
    found: list[Any] = []
    for arm in arms:
        if axis in arm.arm.settings and arm.arm.settings[axis] not in found:
            found.append(arm.arm.settings[axis])
    numbers = all(isinstance(value, (int, float)) for value in found)
    return sorted(found) if numbers else found


def _is_range(values: list[Any]) -> bool:
    """Whether they are places of a continuous axis, too many to be named one by one."""
    return len(values) > _NAMED and all(isinstance(value, (int, float)) for value in values)


def _is_wide(values: list[Any]) -> bool:
    return bool(values[0] > 0 and values[-1] > _WIDE * values[0])


def _height(value: Any, values: list[Any]) -> float:
    if value in values and _is_range(values):
        low, here, high = (math.log(n) if _is_wide(values) else n for n in (values[0], value, values[-1]))
        return float((here - low) / (high - low))
    return values.index(value) / max(1, len(values) - 1) if value in values else float("nan")


def _mean(arm: ArmResult) -> float:
    return sum(arm.scores.values()) / len(arm.scores)


def _cell(arms: Sequence[ArmResult], at: dict[str, Any]) -> float:
    means = [
        _mean(arm) for arm in arms if all(arm.arm.settings.get(key) == value for key, value in at.items())
    ]
    return sum(means) / len(means) if means else float("nan")


def _name(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"name"}:
        return str(value["name"])
    return inline(value)
