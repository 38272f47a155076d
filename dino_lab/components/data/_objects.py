"""Things that the data `shapes` draw: their parts, and what these are made of.

Coordinates are in radii of the object, x to the right, y down; parts are drawn in order, the last in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.components.data._outlines import (
    Outline,
    above,
    around,
    box,
    disc,
    ellipse,
    joined,
    polygon,
    without,
)

# Coordinates to the share of a second colour in each point, 0..1.
Pattern = Callable[[Tensor, Tensor], Tensor]
PAINTS = 3  # colours of an object, which are drawn at random
DARK, PALE = -1, -2  # two greys, which are drawn for each object


def _wave(x: Tensor, period: float) -> Tensor:
    """A steep-sided wave in 0..1 with as much of 0 as of 1."""
    x = x / period
    return (4 * (x - (x + 0.5).floor()).abs() - 0.5).clamp(0, 1)


def _bricks(x: Tensor, y: Tensor) -> Tensor:
    row = (y / 0.28).floor()
    x = x / 0.5 + 0.5 * (row - 2 * (row / 2).floor())
    across, down = x - x.floor(), y / 0.28 - row
    return torch.maximum(8 * (0.12 - across), 8 * (0.22 - down)).clamp(0, 1)


def _dots(x: Tensor, y: Tensor) -> Tensor:
    p, q = x / 0.42, y / 0.42
    row = q.floor()
    p = p + 0.5 * (row - 2 * (row / 2).floor())
    p, q = p - p.floor() - 0.5, q - row - 0.5
    return (3 - 9 * (p * p + q * q).sqrt()).clamp(0, 1)


MATERIALS: dict[str, Pattern | None] = {
    "plain": None,
    "planks": lambda x, y: _wave(x, 0.36),
    "slats": lambda x, y: _wave(y, 0.36),
    "waffle": lambda x, y: torch.maximum(_wave(x + y, 0.34), _wave(x - y, 0.34)),
    "bars": lambda x, y: _wave(x, 0.52),
    "bricks": _bricks,
    "dots": _dots,
}


@dataclass(frozen=True)
class Part:
    """A shape in a colour of the object, and a material, whose pattern is in that colour and a grey."""

    outline: Outline
    paint: int  # a colour of the object, or DARK, PALE
    material: str = "plain"


def _eye(x: float, y: float, radius: float) -> tuple[Part, Part]:
    return Part(disc(x, y, radius), PALE), Part(disc(x, y, 0.55 * radius), DARK)


def _wheel(x: float, y: float) -> tuple[Part, Part]:
    return Part(disc(x, y, 0.27), DARK), Part(disc(x, y, 0.12), PALE)


# What tells classes apart is which parts there are and where. Colours are drawn at random from the same ones.
CLASSES: dict[str, tuple[Part, ...]] = {
    "house": (
        Part(box(0.45, -0.6, 0.13, 0.3), 2),
        Part(box(0, 0.4, 0.7, 0.5), 0, "bricks"),
        Part(polygon((0, -0.95), (0.95, 0), (-0.95, 0)), 1, "slats"),
        Part(box(0.3, 0.57, 0.18, 0.33), 2),
        Part(box(-0.3, 0.38, 0.19, 0.17), PALE),
    ),
    "car": (
        Part(polygon((-0.3, -0.5), (0.35, -0.5), (0.68, 0.0), (-0.6, 0.0)), 1),
        Part(polygon((-0.22, -0.38), (-0.02, -0.38), (-0.02, -0.02), (-0.42, -0.02)), PALE),
        Part(polygon((0.1, -0.38), (0.28, -0.38), (0.5, -0.02), (0.1, -0.02)), PALE),
        Part(polygon((-0.95, -0.05), (0.9, -0.05), (1.0, 0.15), (1.0, 0.42), (-1.0, 0.42), (-1.0, 0.1)), 0),
        *_wheel(-0.52, 0.42),
        *_wheel(0.52, 0.42),
    ),
    "fish": (
        Part(
            joined(polygon((-0.5, 0), (-1, 0.5), (-0.9, 0)), polygon((-0.5, 0), (-0.9, 0), (-1, -0.5))),
            1,
        ),
        Part(polygon((-0.1, -0.7), (0.45, -0.3), (-0.2, -0.3)), 1),
        Part(ellipse(0.2, 0, 0.8, 0.47), 0, "planks"),
        *_eye(0.6, -0.1, 0.16),
    ),
    "tree": (
        Part(box(0, 0.8, 0.14, 0.2), 1),
        Part(
            joined(
                polygon((0, -0.2), (0.75, 0.65), (-0.75, 0.65)),
                polygon((0, -0.6), (0.6, 0.2), (-0.6, 0.2)),
                polygon((0, -1.0), (0.45, -0.25), (-0.45, -0.25)),
            ),
            0,
            "waffle",
        ),
    ),
    "sailboat": (
        Part(box(0.0, -0.2, 0.05, 0.75), DARK),
        Part(polygon((0.1, -0.9), (0.85, 0.3), (0.1, 0.3)), 0, "slats"),
        Part(polygon((-0.1, -0.6), (-0.1, 0.3), (-0.7, 0.3)), 0, "slats"),
        Part(polygon((-1.0, 0.45), (1.0, 0.45), (0.6, 0.9), (-0.65, 0.9)), 2),
    ),
    "flower": (
        Part(box(0, 0.55, 0.07, 0.45), 1),
        Part(joined(ellipse(0.27, 0.7, 0.3, 0.13, -35), ellipse(-0.27, 0.62, 0.3, 0.13, 35)), 1),
        Part(around(6, 0.36, lambda x, y: disc(x, y - 0.35, 0.25)), 0),
        Part(disc(0, -0.35, 0.27), DARK),
        Part(disc(0, -0.35, 0.13), PALE),
    ),
    "mushroom": (
        Part(polygon((-0.2, 0), (0.2, 0), (0.32, 0.9), (-0.32, 0.9)), PALE),
        Part(above(0.1, ellipse(0, 0.1, 0.95, 0.9)), 0, "dots"),
    ),
    "butterfly": (
        Part(
            joined(ellipse(-0.45, -0.35, 0.55, 0.4, 35), ellipse(0.45, -0.35, 0.55, 0.4, -35)),
            0,
            "dots",
        ),
        Part(joined(ellipse(-0.38, 0.4, 0.42, 0.3, -40), ellipse(0.38, 0.4, 0.42, 0.3, 40)), PALE),
        Part(
            joined(
                polygon((-0.35, -0.95), (0.0, -0.5), (-0.07, -0.45)),
                polygon((0.35, -0.95), (0.07, -0.45), (0.0, -0.5)),
            ),
            DARK,
        ),
        Part(ellipse(0, 0, 0.12, 0.62), DARK),
    ),
    "cat": (
        Part(
            joined(
                polygon((-0.75, -0.95), (-0.1, -0.5), (-0.75, 0.1)),
                polygon((0.75, -0.95), (0.75, 0.1), (0.1, -0.5)),
            ),
            0,
        ),
        Part(ellipse(0, 0.15, 0.85, 0.7), 0),
        Part(above(-0.2, ellipse(0, 0.15, 0.7, 0.7)), 0, "planks"),
        Part(joined(ellipse(-0.35, 0.02, 0.19, 0.23), ellipse(0.35, 0.02, 0.19, 0.23)), PALE),
        Part(joined(ellipse(-0.35, 0.02, 0.08, 0.19), ellipse(0.35, 0.02, 0.08, 0.19)), DARK),
        Part(ellipse(0, 0.52, 0.32, 0.22), PALE),
        Part(polygon((-0.14, 0.36), (0.14, 0.36), (0, 0.54)), 1),
    ),
    "umbrella": (
        Part(box(0, 0.25, 0.06, 0.6), DARK),
        Part(
            without(
                joined(above(2.0, disc(0.17, 0.8, 0.23))),
                joined(disc(0.17, 0.8, 0.11), box(0.17, 0.6, 1, 0.2)),
            ),
            DARK,
        ),
        Part(
            without(
                above(0.1, disc(0, 0, 0.98)),
                joined(
                    ellipse(-0.65, 0.12, 0.3, 0.16),
                    ellipse(0, 0.12, 0.3, 0.16),
                    ellipse(0.65, 0.12, 0.3, 0.16),
                ),
            ),
            0,
            "bars",
        ),
    ),
    "rocket": (
        Part(polygon((-0.2, 0.6), (0.2, 0.6), (0, 1.0)), 2),
        Part(
            joined(
                polygon((-0.3, 0.1), (-0.3, 0.6), (-0.7, 0.8)), polygon((0.3, 0.1), (0.7, 0.8), (0.3, 0.6))
            ),
            1,
        ),
        Part(above(0.62, ellipse(0, 0.05, 0.4, 1.05)), 0, "bars"),
        Part(above(-0.5, ellipse(0, 0.05, 0.4, 1.05)), 1),
        Part(disc(0, -0.12, 0.2), PALE),
        Part(disc(0, -0.12, 0.11), 2),
    ),
    "ice cream": (
        Part(polygon((-0.42, 0.05), (0.42, 0.05), (0, 1.0)), 0, "waffle"),
        Part(disc(-0.3, -0.1, 0.36), 1),
        Part(disc(0.3, -0.1, 0.36), 2),
        Part(disc(0, -0.5, 0.38), 0, "dots"),
    ),
}
MOST_PARTS = max(len(parts) for parts in CLASSES.values())
