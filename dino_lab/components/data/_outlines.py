"""Outlines of flat shapes as distances: functions of coordinates, negative inside.

Only correctly rounded operations are used, so that a picture is the same on every machine and in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor

# Coordinates x and y (to the right, down) to the distance to an outline, near it exact; negative inside.
Outline = Callable[[Tensor, Tensor], Tensor]
_DIGITS = 6  # of constants that come from a sine or a root, whose last bit may differ between machines


def disc(x: float, y: float, radius: float) -> Outline:
    """A disc about (x, y)."""

    def distance(u: Tensor, v: Tensor) -> Tensor:
        u, v = u - x, v - y
        return (u * u + v * v).sqrt() - radius

    return distance


def ellipse(x: float, y: float, across: float, down: float, turn: float = 0.0) -> Outline:
    """An ellipse about (x, y) with these half axes, turned clockwise by `turn` degrees."""
    cosine, sine = _direction(turn)

    def distance(u: Tensor, v: Tensor) -> Tensor:
        u, v = u - x, v - y
        if turn:
            u, v = cosine * u + sine * v, cosine * v - sine * u
        p, q = u / across, v / down
        near = (p * p + q * q).sqrt()
        # The distance to first order: the function over the length of its gradient.
        p, q = p / across, q / down
        slope = (p * p + q * q).sqrt().clamp_min(1e-6)
        return near * (near - 1) / slope

    return distance


def box(x: float, y: float, half_width: float, half_height: float) -> Outline:
    """An upright box about (x, y)."""
    return lambda u, v: torch.maximum((u - x).abs() - half_width, (v - y).abs() - half_height)


def polygon(*corners: tuple[float, float]) -> Outline:
    """A convex polygon; its corners clockwise as seen (y runs down)."""
    edges = []
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
        length = math.hypot(x1 - x0, y1 - y0)
        a, b = round((y1 - y0) / length, _DIGITS), round((x0 - x1) / length, _DIGITS)
        edges.append((a, b, round(a * x0 + b * y0, _DIGITS)))

    def distance(u: Tensor, v: Tensor) -> Tensor:
        return reduce(torch.maximum, (a * u + b * v - c for a, b, c in edges))

    return distance


def above(y: float, outline: Outline) -> Outline:
    """The part of a shape above the line at `y`."""
    return lambda u, v: torch.maximum(outline(u, v), v - y)


def joined(*outlines: Outline) -> Outline:
    """What lies in any of several shapes."""
    return lambda u, v: reduce(torch.minimum, (outline(u, v) for outline in outlines))


def without(outline: Outline, hole: Outline) -> Outline:
    """A shape less another."""
    return lambda u, v: torch.maximum(outline(u, v), -hole(u, v))


def around(count: int, radius: float, make: Callable[[float, float], Outline]) -> Outline:
    """Equal shapes at equal angles about the middle, the first of them above it."""
    directions = [_direction(360 * i / count) for i in range(count)]
    return joined(*(make(radius * sine, -radius * cosine) for cosine, sine in directions))


def _direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine."""
    angle = math.radians(degrees)
    return round(math.cos(angle), _DIGITS), round(math.sin(angle), _DIGITS)
