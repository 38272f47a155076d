"""Parameters of the operations on a view, as groups that all augmentations share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dino_lab.components.augment._lists import policy
from dino_lab.components.augment._policy import Policy
from dino_lab.registry import ParameterGroup
from dino_lab.registry.ranges import Probability, Scale, Sigma

BlurProbability = Annotated[float, Field(ge=0, le=1, description="probability of a Gaussian blur")]
SolarizeProbability = Annotated[
    float, Field(ge=0, le=1, description="probability that pixels of at least half the range are inverted")
]
Pixels = Annotated[int, Field(gt=0, description="side of the square crops, in pixels")]


class Operations(ParameterGroup):
    """Flip, rotation, colour jitter, greyscale and the width of the blur, which are alike for all views.

    The defaults are DINO's (arXiv 2104.14294, main_dino.py), which follow BYOL (arXiv 2006.07733, App. B).
    """

    flip_probability: Probability = Field(0.5, description="probability of a horizontal flip")
    rotation: float = Field(
        0.0, ge=0, le=180, description="largest angle of rotation to either side, in degrees; 0: none"
    )
    brightness: float = Field(
        0.4, ge=0, description="jitter: strength s of the factor, which is uniform in 1 - s to 1 + s"
    )
    contrast: float = Field(
        0.4, ge=0, description="jitter: strength s of the factor, which is uniform in 1 - s to 1 + s"
    )
    saturation: float = Field(
        0.2, ge=0, description="jitter: strength s of the factor, which is uniform in 1 - s to 1 + s"
    )
    hue: float = Field(
        0.1, ge=0, le=0.5, description="jitter: largest shift to either side, in turns of the colour circle"
    )
    jitter_probability: Probability = Field(
        0.8, description="probability that brightness, contrast, saturation and hue are changed"
    )
    grey_probability: Probability = Field(0.2, description="probability that the colour is removed")
    blur_sigma: Sigma = Field(
        (0.1, 2.0), description="smallest and largest standard deviation of the blur, in pixels of the crop"
    )

    def policy(
        self,
        size: int,
        scale: tuple[float, float],
        blur: tuple[float, ...],
        solarize: tuple[float, ...],
    ) -> Policy:
        """These operations in DINO's order, with a probability of blur and of solarization for each view."""
        jitter = self.model_dump(include={"brightness", "contrast", "saturation", "hue"})
        # What cannot happen draws no number, so that the crops of a spec stay what they are.
        listed = [
            {"crop": {"scale": scale}},
            {"flip": self.flip_probability},
            *[{"rotate": {"degrees": self.rotation}}] * bool(self.rotation),
            *[{"jitter": {**jitter, "p": self.jitter_probability}}] * bool(self.jitter_probability),
            *[{"grey": self.grey_probability}] * bool(self.grey_probability),
            *[{"blur": {"sigma": self.blur_sigma, "p": blur}}] * any(blur),
            *[{"solarize": {"p": solarize}}] * any(solarize),
        ]
        return policy(len(blur), size, listed)


class ViewOperations(Operations):
    """Everything that happens to a view: how much of the image it shows, and all operations."""

    scale: Scale = (0.08, 1.0)
    blur_probability: BlurProbability = 0.5
    solarize_probability: SolarizeProbability = 0.0

    def views(self, size: int, count: int = 1) -> Policy:
        """The policy for `count` views of `size` pixels, all alike."""
        return self.policy(
            size, self.scale, (self.blur_probability,) * count, (self.solarize_probability,) * count
        )
