"""Charts of evaluators, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dino_lab.imaging.pictures import figure_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES = 30  # rows or columns with a name; of more, names hide the picture
LEAST_SHOWN = 1e-7  # eigenvalues below this share of the largest are drawn there


def eigenvalue_plot(eigenvalues: Tensor, rank: float) -> bytes:
    """Eigenvalues [D], largest first, as shares of the largest, and where the effective rank lies."""
    figure = _figure(5.2, 3.4)
    panel = figure.add_subplot()
    largest = eigenvalues[0].item()
    shares = (eigenvalues / largest if largest > 0 else eigenvalues).clamp_min(LEAST_SHOWN)
    panel.semilogy(range(1, len(shares) + 1), shares.tolist(), ".-", markersize=4, linewidth=1)
    panel.axvline(rank, color="tab:red", linewidth=1, label=f"RankMe {rank:.1f}")
    panel.set_xlabel("eigenvalue of the covariance of the features")
    panel.set_ylabel("share of the largest")
    panel.grid(alpha=0.3)
    panel.legend()
    return _png(figure)


def confusion_plot(shares: Tensor, rows: Sequence[str], columns: Sequence[str], across: str) -> bytes:
    """Shares [rows, columns]: of the images of each class, in which column they are."""
    height, width = shares.shape
    named = max(height, width) <= MOST_NAMES
    cell = 0.34 if named else 8 / max(height, width)
    figure = _figure(max(3.6, cell * width + 2.4), max(2.8, cell * height + 1.2))
    panel = figure.add_subplot()
    most = max(shares.max().item(), 0.01)
    shown = panel.imshow(shares.tolist(), cmap="Blues", vmin=0, vmax=most, interpolation="nearest")
    if named:
        panel.set_xticks(range(width), list(columns), rotation=90, fontsize=7, parse_math=False)
        panel.set_yticks(range(height), list(rows), fontsize=7, parse_math=False)
        for (y, x), share in ((at.tolist(), shares[tuple(at)].item()) for at in (shares >= 0.005).nonzero()):
            colour = "white" if share > 0.6 * most else "black"
            panel.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=colour)
    panel.set_xlabel(across)
    panel.set_ylabel("class")
    figure.colorbar(shown, shrink=0.8, label="share of the class's images")
    return _png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    return figure_png(figure, dpi=120, bbox_inches="tight")
