"""Masks from COCO's outlines: polygons and run lengths (cocodataset.org/#format-data)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def mask_of(segmentation: Any, width: int, height: int) -> Mask:
    """The mask bool [H, W] of an object: of several polygons their union, or of run lengths.

    A ValueError where it is neither, or its run lengths are those of another size.
    """
    if isinstance(segmentation, list):
        mask = np.zeros((height, width), bool)
        for polygon in segmentation:
            mask |= _filled(polygon, width, height)
        return mask
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= segmentation.keys():
        raise ValueError("a segmentation is a list of polygons, or run lengths with counts and size")
    if list(segmentation["size"]) != [height, width]:
        raise ValueError(f"run lengths of {segmentation['size']} for an image of {[height, width]}")
    counts = segmentation["counts"]
    return _of_runs(decompressed(counts) if isinstance(counts, str) else counts, width, height)


def _filled(polygon: Sequence[float], width: int, height: int) -> Mask:
    """The pixels whose centre lies in a polygon x0, y0, x1, y1, ...; crossed outlines by the even-odd rule.

    Pixel i is from i to i + 1. A pixel's centre is inside where an odd number of edges lies to its left.
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    if len(points) < 3:
        raise ValueError(f"a polygon of {len(points)} points")
    edges = np.zeros((height, width + 1), np.int64)  # by the first pixel to their right
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        first, end = (int(np.ceil(y - 0.5)) for y in sorted((y0, y1)))
        rows = np.arange(max(0, first), min(height, end))
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(edges, (rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)), 1)
    inside: Mask = edges.cumsum(1)[:, :width] % 2 == 1
    return inside


def _of_runs(counts: Sequence[int], width: int, height: int) -> Mask:
    """Run lengths of background and object by turns, down the columns."""
    runs = np.asarray(counts, np.int64)
    if (runs < 0).any() or runs.sum() != width * height:
        raise ValueError(f"run lengths of {runs.sum()} pixels for an image of {width * height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decompressed(text: str) -> list[int]:
    """Run lengths of COCO's compressed text.

    Each character has 5 bits of a number, the lowest first, and a sixth bit where more follow; the last one's
    highest bit is the sign. From the fourth on, a number is the difference to the one two before it.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text.encode("ascii"):
        code = character - 48
        value |= (code & 0b11111) << shift
        shift += 5
        if not code & 0b100000:
            if code & 0b10000:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
