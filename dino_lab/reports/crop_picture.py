"""A picture of images and of the crops that are made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from dino_lab.imaging.pictures import figure_png, three_channels, with_bands
from dino_lab.types import Images, Views, WholeImages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEACHER, STUDENT, INK = "#d55e00", "#0072b2", "#333333"  # told apart by every kind of eye
INCH = 1.25  # of the largest crop
SMALLEST = 0.55  # side of the least crop, in that of the largest: words fit above it
HEAD, GAP = 1.1, 0.1  # inches above the first row, and between crops


def draw_crops(images: Images, views: Views, title: str) -> bytes:
    """PNG: a row for each image with its crops in 0..1 beside it, before normalisation.

    Images are uint8 [N, C, H, W], or of many sizes. A frame says who sees a crop: the teacher and maybe the
    student, or the student alone. Above it stand its number and the teacher's views that it is compared
    with: + pulled together, - pushed apart.
    """
    import matplotlib
    from matplotlib.figure import Figure

    widths = [1.0, *(_width(views, group) for group, _, _ in _columns(views))]
    width, rows = INCH * sum(widths) + GAP * (len(widths) + 1), len(images)
    height = HEAD + rows * (INCH + GAP)
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(max(width, 6.0), height), dpi=150, facecolor="white")
        scale = figure.get_figwidth()
        left = GAP
        for column, (share, pictures, words, colour) in enumerate(_described(images, views, widths)):
            side = INCH * share
            for row in range(rows):
                bottom = (rows - 1 - row) * (INCH + GAP) + GAP + INCH - side
                axes = figure.add_axes((left / scale, bottom / height, side / scale, side / height))
                _show(axes, pictures[row], colour)
            top = (rows * (INCH + GAP) + 0.04) / height
            figure.text(
                left / scale, top, words, va="bottom", color=colour, fontweight="bold" if column else None
            )
            left += side + GAP
        figure.text(GAP / scale, 1 - 0.06 / height, title, va="top", fontsize=9, color=INK)
        _legend(figure, scale, height)
        return figure_png(figure)


def _columns(views: Views) -> Iterator[tuple[int, int, int]]:
    """Group, place in the group and number of every view, in the student's order."""
    number = 0
    for group, crops in enumerate(views.crops):
        for place in range(len(crops)):
            yield group, place, number
            number += 1


def _described(
    images: Images, views: Views, widths: list[float]
) -> Iterator[tuple[float, Sequence[Tensor], str, str]]:
    """Width, pictures, words and colour of every column."""
    pixels = "whole" if isinstance(images, WholeImages) else _pixels(images)
    heading = with_bands(f"image\n{pixels}", views.crops[0].shape[2]).replace(", ", "\n")
    yield widths[0], [image.float() / 255 for image in images], heading, INK
    for share, (group, place, number) in zip(widths[1:], _columns(views), strict=True):
        crops = views.crops[group]
        words = [f"view {number + 1}", _pixels(crops[place]), _partners(views.pairs[number])]
        yield share, list(crops[place]), "\n".join(words), TEACHER if group == 0 else STUDENT


def _partners(pairs: Tensor) -> str:
    """The teacher's views [T] that one of the student's is compared with."""
    signs = {1: "+", -1: "−"}  # noqa: RUF001
    return " ".join(f"{signs[sign]}{t + 1}" for t, sign in enumerate(pairs.tolist()) if sign) or "·"


def _width(views: Views, group: int) -> float:
    largest = max(crops.shape[-1] for crops in views.crops)
    return max(SMALLEST, float(views.crops[group].shape[-1] / largest))


def _pixels(pictures: Tensor) -> str:
    return f"{pictures.shape[-1]} px"


def _show(axes: Axes, picture: Tensor, colour: str) -> None:
    """One picture [C, H, W] in 0..1, its pixels as they are."""
    axes.imshow(three_channels(picture).clamp(0, 1).movedim(0, -1).numpy(), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=1.5)


def _legend(figure: Figure, scale: float, height: float) -> None:
    lines = [
        [(TEACHER, "the teacher sees it"), (STUDENT, "the student alone sees it")],
        [(INK, "+1 pulled to the teacher's view 1, −1 pushed from it, · compared with none")],  # noqa: RUF001
    ]
    for row, line in enumerate(lines):
        for column, (colour, text) in enumerate(line):
            x, y = (GAP + 1.35 * column) / scale, 1 - (0.24 + 0.15 * row) / height
            figure.text(x, y, text, va="top", color=colour, fontsize=7.5)
