"""Colours that follow the page, light or dark: matplotlib draws stand-ins, which become CSS variables."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from dino_lab.errors import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SERIES = 8  # colours that colour-blind people can tell apart; templates/style.css has them as --c0 ... --c7
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
INK, GRID = "#fe0020", "#fe0021"
_VARIABLES = {INK: "ink", GRID: "line", "#1f77b4": "c0", "#d62728": "c1"}
_STYLE = re.compile(r"((?:fill|stroke): )(#[0-9a-f]{6})")
_PARTS = re.compile(
    r"<\?xml.*?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL
)
_NUMBERED = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_NAMED = re.compile(r'id="series-(\d+)"')
_SIZE = re.compile(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>')


def colour(index: int) -> str:
    """The stand-in of a series' colour."""
    return f"#fe00{index % SERIES:02x}"


def dash(index: int) -> Any:
    """The dashes of a series: another kind when the colours are used up."""
    return DASHES[index // SERIES % len(DASHES)]


def settings() -> dict[str, Any]:
    """The settings of matplotlib for drawings of a page."""
    from cycler import cycler

    inks = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    return {
        **dict.fromkeys(inks, INK),
        "axes.prop_cycle": cycler(color=[colour(i) for i in range(SERIES)]),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "axes.linewidth": 0.7,
        "font.size": 9,
        "legend.framealpha": 0.0,
        "svg.fonttype": "none",
        "text.parse_math": False,  # a label may hold a dollar
    }


def inline_svg(figure: Figure, label: str) -> Markup:
    """A figure as an element of the page, which decides on its size and colours; its series are named."""
    import matplotlib

    buffer = io.StringIO()
    # The salt keeps the names of markers and clips of one figure apart from those of another.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = _PARTS.sub("", buffer.getvalue())
    name = escape(printable(label))
    text = _SIZE.sub(lambda found: f'<svg {found[1]} role="img" aria-label="{name}">', text, count=1)
    text = _NAMED.sub(r'data-series="\1"', _NUMBERED.sub("", text))
    return Markup(_STYLE.sub(_variable, text).strip())


def _variable(found: re.Match[str]) -> str:
    name = _VARIABLES.get(found[2])
    if name is None and found[2].startswith("#fe000"):
        name = f"c{int(found[2][-1], 16)}"
    return found[0] if name is None else f"{found[1]}var(--{name})"
