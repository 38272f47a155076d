"""A picture of the distance that features move with each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dino_lab.imaging.pictures import figure_png


def draw_curves(
    curves: Mapping[str, Sequence[float]], axes: Mapping[str, tuple[str, Sequence[float]]]
) -> bytes:
    """A PNG with one panel a change: relative distances over strengths; `axes` has the unit and strengths."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    highest = max(1.0, *(value for values in curves.values() for value in values))
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(2.6 * columns, 2.2 * rows + 0.3), layout="constrained", dpi=120)
        for i, (name, values) in enumerate(curves.items()):
            panel = figure.add_subplot(rows, columns, i + 1)
            unit, strengths = axes[name]
            panel.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
            panel.plot(strengths, values, "o-", color="tab:blue", markersize=3, clip_on=False)
            panel.set(title=name, xlabel=unit, ylim=(0, 1.05 * highest))
            if len(strengths) == 1:
                panel.set_xticks([])
            if i % columns == 0:
                panel.set_ylabel("relative distance")
        figure.suptitle("How far features move; 1 is the distance between two images", fontsize=9)
        return figure_png(figure)
