"""Probabilities and ranges that components of several kinds accept."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    low, high = pair
    if low > high:
        raise ValueError(f"is a pair (low, high) with low <= high, got ({low:g}, {high:g})")
    return pair


def _positive(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] <= 0:
        raise ValueError(f"must be greater than 0, got {pair[0]:g}")
    return pair


def _within_image(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] <= 0 or pair[1] > 1:
        raise ValueError(
            f"is a share of the image's area, 0 < low <= high <= 1, got ({pair[0]:g}, {pair[1]:g})"
        )
    return pair


Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
Sigma = Annotated[Range, AfterValidator(_positive)]  # of a blur
Scale = Annotated[
    Range,
    AfterValidator(_within_image),
    Field(description="smallest and largest share of the image's area that a crop shows"),
]
