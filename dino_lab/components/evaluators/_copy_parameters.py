"""Mappings that the parameters of copy detection hold."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from dino_lab.components.evaluators._whitening import LEAST

Positive = Annotated[int, Field(gt=0)]
Kind = Literal["crop", "jpeg", "blur", "overlay", "rotation", "colour"]


class Generate(BaseModel, frozen=True, extra="forbid"):
    """Which copies are made."""

    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)] = (
        "crop",
        "jpeg",
        "blur",
        "overlay",
        "rotation",
        "colour",
    )
    images: Positive = Field(100, description="copied are at most so many, at equal distances; searched all")
    seed: Annotated[int, Field(ge=0)] = 0


class Whiten(BaseModel, frozen=True, extra="forbid"):
    """Whitening by principal components of the features of other images."""

    path: str = Field(description="a folder of images to learn it from")
    power: Annotated[float, Field(gt=0, le=1)] = Field(0.5, description="of eigenvalues; 0.5 whitens wholly")
    centred: bool = Field(
        True, description="covariance of features less their mean; DINO's script takes it without"
    )


def in_words(whitening: Whiten | None) -> str:
    """For a protocol."""
    if whitening is None:
        return "not whitened"
    moments = "covariance" if whitening.centred else "second moments"
    return (
        f"whitened with power {whitening.power:g} by {moments} of a folder (eigenvalues at least {LEAST:g} "
        "of the largest)"
    )
