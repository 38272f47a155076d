"""Nested parameters of copy detection."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from dino_lab.components.evaluators._whitening import LEAST

Kind = Literal["crop", "jpeg", "blur", "overlay", "rotation", "colour"]


class Generate(BaseModel, frozen=True, extra="forbid"):
    """Copies that are made of images."""

    kinds: tuple[Kind, ...] = Field(
        ("crop", "jpeg", "blur", "overlay", "rotation", "colour"),
        min_length=1,
        description="changes that turn an image into a copy, one score each",
    )
    images: int = Field(
        100, gt=0, description="images that are copied, at equal distances in the order; all are searched"
    )
    seed: int = Field(0, ge=0, description="of the strengths and places of the changes")


class Whiten(BaseModel, frozen=True, extra="forbid"):
    """Whitening by principal components of the features of other images."""

    path: str = Field(description="folder of images that the components are computed from")
    power: float = Field(
        0.5, gt=0, le=1, description="power of the eigenvalues to divide by; 0.5 whitens completely"
    )
    centred: bool = Field(True, description="subtract the mean of the features first; DINO's script does not")


def in_words(whitening: Whiten | None) -> str:
    """The whitening, in the words of a protocol."""
    if whitening is None:
        return "not whitened"
    moments = "covariance" if whitening.centred else "second moments"
    return (
        f"whitened with power {whitening.power:g} by {moments} of a folder (eigenvalues at least {LEAST:g} "
        "of the largest)"
    )
