"""A chart of lines, drawn for a page, and its numbers, which a pointer reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dino_lab.errors import printable
from dino_lab.reports.theme import INK, colour, dash, inline_svg

DASHES = (("dotted", (1, 2)), ("dashed", (5, 3)), ("dash-dotted", (5, 2, 1, 2)))  # of thin lines
MOST_POINTS = 400  # of a line
FEW_POINTS = 40  # of which each has a dot
WIDTH, HEIGHT = 4.3, 2.5  # inches


@dataclass(frozen=True)
class ChartLine:
    """One curve; `series` chooses its colour, and names it where several charts show the same thing."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    series: int = 0


@dataclass(frozen=True)
class ChartFloor:
    """A thin line that a curve should rise above, in the colour of its series or, for all curves, grey."""

    height: float
    dashes: int  # place in DASHES
    series: int | None = None


@dataclass(frozen=True)
class Chart:
    """Lines over one axis; `level` is a height that means something, and its name."""

    title: str
    y_label: str
    lines: tuple[ChartLine, ...]
    x_label: str = "epoch"
    level: tuple[float, str] | None = None
    floors: tuple[ChartFloor, ...] = ()
    note: str = ""

    @property
    def has_course(self) -> bool:
        """Whether a line has two points or more; a single dot is no curve."""
        return any(len(thinned(line).x) > 1 for line in self.lines)


@dataclass(frozen=True)
class DrawnChart:
    """A chart on the page; `data` is what its pointer needs: the box of the axes, their limits, the lines."""

    title: str
    note: str
    svg: Markup
    data: dict[str, Any]
    legend: tuple[tuple[str, int], ...]  # names and series, where there is more than one


def draw(chart: Chart, *, legend: bool = True) -> DrawnChart:
    """The chart as SVG; matplotlib's settings are the caller's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panel = figure.add_subplot()
    lines = [thinned(line) for line in chart.lines]
    for line in lines:
        (drawn,) = panel.plot(
            line.x,
            line.y,
            color=colour(line.series),
            linestyle=dash(line.series),
            linewidth=1.5,
            marker="o" if len(line.x) <= FEW_POINTS else None,
            markersize=3,
        )
        drawn.set_gid(f"series-{line.series}")
    for floor in chart.floors:
        _, dashes = DASHES[floor.dashes % len(DASHES)]
        ink = INK if floor.series is None else colour(floor.series)
        panel.axhline(floor.height, color=ink, linewidth=0.7, linestyle=(0, dashes))
    if chart.level is not None:
        height, name = chart.level
        panel.axhline(height, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        panel.set_ylim(min(0.0, panel.get_ylim()[0]), height * 1.16)
        panel.text(1, height, name, transform=panel.get_yaxis_transform(), ha="right", va="bottom")
    panel.set_xlabel(printable(chart.x_label))
    panel.set_ylabel(printable(chart.y_label))
    svg = inline_svg(figure, f"{chart.title}: {chart.y_label} over {chart.x_label}")
    names = tuple((line.name, line.series) for line in lines) if legend and len(lines) > 1 else ()
    return DrawnChart(chart.title, chart.note, svg, _readable(panel, chart, lines), names)


def thinned(line: ChartLine, most: int = MOST_POINTS) -> ChartLine:
    """The finite points of a line; of too many, the lowest and the highest of each stretch."""
    points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(points) > most:
        stretches = [
            points[i * len(points) * 2 // most : (i + 1) * len(points) * 2 // most] for i in range(most // 2)
        ]
        ends = ({min(part, key=_height), max(part, key=_height)} for part in stretches)
        points = [point for pair in ends for point in sorted(pair)]
    return ChartLine(line.name, [x for x, _ in points], [y for _, y in points], line.series)


def _height(point: tuple[float, float]) -> float:
    return point[1]


def _readable(panel: Any, chart: Chart, lines: Sequence[ChartLine]) -> dict[str, Any]:
    """Where numbers lie in the picture: the box is in the units of its viewBox, y down."""
    box = panel.get_position()
    width, height = WIDTH * 72, HEIGHT * 72
    return {
        "x": chart.x_label,
        "box": [box.x0 * width, (1 - box.y1) * height, box.x1 * width, (1 - box.y0) * height],
        "limits": [*panel.get_xlim(), *panel.get_ylim()],
        "lines": [
            {"name": line.name, "series": line.series, "x": _short(line.x), "y": _short(line.y)}
            for line in lines
        ],
    }


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]
