"""What happens to a view, as a mapping of a spec: for augmentations whose views differ in more than blur."""

from __future__ import annotations

from pydantic import BaseModel

from dino_lab.components.augment._parameters import Degrees, HueStrength, Probability, Scale, Sigma, Strength
from dino_lab.components.augment._policy import Policy


class Operations(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Crop, flip, turn, colour, blur, solarize."""

    scale: Scale = (0.08, 1.0)
    flip_probability: Probability = 0.5
    rotation: Degrees = 0.0
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: HueStrength = 0.1
    jitter_probability: Probability = 0.8
    grey_probability: Probability = 0.2
    blur_sigma: Sigma = (0.1, 2.0)
    blur_probability: Probability = 0.5
    solarize_probability: Probability = 0.0

    def policy(self, size: int, views: int = 1) -> Policy:
        """The policy that draws so many views of `size` pixels."""
        alike = {key: value for key, value in self if key not in ("blur_probability", "solarize_probability")}
        return Policy(
            size=size,
            **alike,
            blur_probability=(self.blur_probability,) * views,
            solarize_probability=(self.solarize_probability,) * views,
        )
