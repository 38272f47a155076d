"""Objects made of parts, drawn from signed distances.

Coordinates run from -1 (left, top) to 1, so that a drawing is the same at every number of pixels. At pixels
only correctly rounded operations are used, so that an image does not depend on the batch it is drawn in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
Pattern = Callable[[Tensor, Tensor], Tensor]


def _box(x: Tensor, y: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(x.abs() - half_width, y.abs() - half_height)


def _disc(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 1


def _triangle(x: Tensor, y: Tensor) -> Tensor:
    # Apex at the top (y = -1), base at y = 0.9; the slanted sides have the normal (0.885, -0.466).
    return torch.maximum(0.885 * x.abs() - 0.466 * (y + 1), y - 0.9)


# Distance to the outline, negative inside, of a part of radius about 1.
PARTS: dict[str, Distance] = {
    "disc": _disc,
    "ring": lambda x, y: (_disc(x, y) + 0.3).abs() - 0.3,
    "square": lambda x, y: _box(x, y, 0.85, 0.85),
    "bar": lambda x, y: _box(x, y, 1.0, 0.3),
    "post": lambda x, y: _box(x, y, 0.3, 1.0),
    "cross": lambda x, y: torch.minimum(_box(x, y, 1.0, 0.3), _box(x, y, 0.3, 1.0)),
    "triangle": _triangle,
    "frame": lambda x, y: (_box(x, y, 0.7, 0.7)).abs() - 0.25,
}


def _wave(x: Tensor) -> Tensor:
    """Steep-sided wave of period 1 in -1..1: no sine, whose last bit may differ from batch to batch."""
    return (8 * (x - (x + 0.5).floor()).abs() - 2).clamp(-1, 1)


# Light and dark in equal shares: over many images the mean is that of the background. The mirror image of a
# material is the same material.
MATERIALS: dict[str, Pattern] = {
    "slats": lambda u, v: _wave(v),
    "planks": lambda u, v: _wave(u),
    "checks": lambda u, v: _wave(0.7 * (u + v)) * _wave(0.7 * (u - v)),
    "tiles": lambda u, v: _wave(2 * u) * _wave(2 * v),
}


@dataclass(frozen=True)
class Part:
    """A shape, where it belongs in the object, which has a radius of about 1, and what it is made of."""

    shape: str
    x: float
    y: float
    radius: float
    material: str


# Classes share shapes and materials: what tells them apart is which parts there are, and where.
CLASSES: dict[str, tuple[Part, ...]] = {
    "lollipop": (
        Part("post", 0, 0.45, 0.55, "slats"),
        Part("disc", 0, -0.4, 0.6, "checks"),
    ),
    "barbell": (
        Part("bar", 0, 0, 0.6, "planks"),
        Part("disc", -0.6, 0, 0.5, "planks"),
        Part("disc", 0.6, 0, 0.5, "planks"),
    ),
    "house": (
        Part("square", 0, 0.45, 0.6, "planks"),
        Part("triangle", 0, -0.5, 0.7, "slats"),
    ),
    "key": (
        Part("post", 0, 0.4, 0.65, "checks"),
        Part("ring", 0, -0.5, 0.6, "tiles"),
        Part("bar", 0.25, 0.8, 0.3, "checks"),
    ),
    "table": (
        Part("post", -0.6, 0.3, 0.65, "slats"),
        Part("post", 0.6, 0.3, 0.65, "slats"),
        Part("bar", 0, -0.5, 1.0, "slats"),
    ),
    "lights": (
        Part("disc", 0, -0.72, 0.4, "tiles"),
        Part("disc", 0, 0, 0.4, "planks"),
        Part("disc", 0, 0.72, 0.4, "tiles"),
    ),
    "grave": (
        Part("square", 0, 0.5, 0.6, "tiles"),
        Part("cross", 0, -0.4, 0.65, "tiles"),
    ),
    "cart": (
        Part("frame", 0, -0.3, 0.8, "checks"),
        Part("disc", -0.5, 0.65, 0.4, "slats"),
        Part("disc", 0.5, 0.65, 0.4, "slats"),
    ),
    "tree": (
        Part("post", 0, 0.6, 0.45, "planks"),
        Part("triangle", 0, 0.1, 0.65, "checks"),
        Part("triangle", 0, -0.5, 0.55, "checks"),
    ),
    "glasses": (
        Part("bar", 0, 0, 0.3, "checks"),
        Part("ring", -0.6, 0, 0.55, "checks"),
        Part("ring", 0.6, 0, 0.55, "checks"),
    ),
    "flag": (
        Part("post", -0.5, 0, 1.0, "tiles"),
        Part("square", 0.15, -0.5, 0.6, "slats"),
    ),
    "window": (
        Part("frame", 0, 0, 1.0, "planks"),
        Part("cross", 0, 0, 0.6, "tiles"),
    ),
}
MOST_PARTS = max(len(parts) for parts in CLASSES.values())


def texture(material: str, x: Tensor, y: Tensor, period: Tensor, phase: tuple[Tensor, Tensor]) -> Tensor:
    """The pattern of a material, -1..1 with mean 0, at [N, H, W]; phases are in periods."""
    u, v = x / period + phase[0], y / period + phase[1]
    return MATERIALS[material](u, v)


def coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor, size: int) -> Tensor:
    """The share of each pixel that a part covers, 0..1, for coordinates [N, H, W] about the part's centre."""
    distance = PARTS[shape](x / radius, y / radius) * radius  # in units of half an image
    return (0.5 - distance * (size / 2)).clamp(0, 1)
