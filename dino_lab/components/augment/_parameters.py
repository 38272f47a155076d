"""Types of the parameters that the augmentations share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, description="the factor is drawn from 1 - strength to 1 + strength")]
HueStrength = Annotated[
    float, Field(ge=0, le=0.5, description="largest shift, in turns of the colour circle")
]
Degrees = Annotated[float, Field(ge=0, le=180, description="largest angle, in degrees")]
Pixels = Annotated[int, Field(gt=0, description="side of the square crops, in pixels")]


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


Scale = Annotated[
    tuple[float, float],
    AfterValidator(_ordered),
    AfterValidator(_within_image),
    Field(description="smallest and largest share of the image's area"),
]
Sigma = Annotated[
    tuple[float, float],
    AfterValidator(_ordered),
    AfterValidator(_positive),
    Field(description="smallest and largest standard deviation, in pixels of the crop"),
]
