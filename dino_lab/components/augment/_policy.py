"""The operations on one group of views: crop, flip, rotation, colour, blur, solarization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.components.augment import _by_batch as by_batch
from dino_lab.components.augment import _by_crop as by_crop
from dino_lab.components.augment._blur import kernel_radius
from dino_lab.components.augment._colour import in_order
from dino_lab.components.augment._crop import sample_boxes
from dino_lab.components.augment._sampling import SampledParameters, between, per_view, uniform
from dino_lab.errors import UserError


@dataclass(frozen=True)
class Policy:
    """Operations, in the order of the DINO code (main_dino.py), for views of one size.

    Blur and solarize have a probability for every view, so their lengths are the number of views. All else
    is sampled alike for every view, and for every image by itself.
    """

    size: int
    scale: tuple[float, float]
    flip_probability: float
    rotation: float  # largest angle, in degrees
    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter_probability: float
    grey_probability: float
    blur_sigma: tuple[float, float]
    blur_probability: tuple[float, ...]
    solarize_probability: tuple[float, ...]

    @property
    def views(self) -> int:
        """Number of crops of each image."""
        return len(self.blur_probability)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, generator: torch.Generator, batch: int | None = None, first: int = 0
    ) -> Tensor:
        """Images uint8 [B, C, H, W] to crops float32 [V, B, C, size, size] in 0..1; else UserError.

        Where they are some of a `batch`, from position `first` on, parameters are sampled for all of it.
        """
        _check(images)
        B, _, H, W = images.shape
        sampled = self.sample(B if batch is None else batch, H, W, generator)
        sampled = sampled.of(slice(first, first + B)).to(images.device)
        make = by_crop.make if images.device.type == "cpu" else by_batch.make
        with torch.autocast(images.device.type, enabled=False):
            return make(images, sampled, self.size, kernel_radius(self.blur_sigma[1]))

    def sample(self, B: int, H: int, W: int, generator: torch.Generator) -> SampledParameters:
        """The parameters of all operations on all crops of B images of H times W pixels, on the CPU."""
        V = self.views
        return SampledParameters(
            boxes=sample_boxes((V, B), H, W, self.scale, generator),
            flipped=uniform(generator, V, B) < self.flip_probability,
            angle=between(-self.rotation, self.rotation, uniform(generator, V, B)) if self.rotation else None,
            **self._sample_colour(V, B, generator),
            **self._sample_blur(V, B, generator),
        )

    def _sample_colour(self, V: int, B: int, generator: torch.Generator) -> dict[str, Tensor | None]:
        blends = hue_shift = grey = None
        if self.jitter_probability:
            jittered = uniform(generator, V, B) < self.jitter_probability
            *shares, share = uniform(generator, 4, V, B)
            strengths = (self.brightness, self.contrast, self.saturation)
            factors = [between(max(0.0, 1 - s), 1 + s, u) for s, u in zip(strengths, shares, strict=True)]
            factor = torch.where(jittered, torch.stack(factors), 1.0)  # [3, V, B]
            hue_shift = jittered * self.hue * (2 * share - 1)
            blends = in_order(factor.movedim(0, -1), uniform(generator, V, B, 4))
        if self.grey_probability:
            grey = uniform(generator, V, B) < self.grey_probability
        return {"blends": blends, "hue_shift": hue_shift, "grey": grey}

    def _sample_blur(self, V: int, B: int, generator: torch.Generator) -> dict[str, Tensor | None]:
        blurred = sigma = solarized = None
        if any(self.blur_probability):
            blurred = per_view(self.blur_probability, B, generator)
            sigma = between(*self.blur_sigma, uniform(generator, V, B))
        if any(self.solarize_probability):
            solarized = per_view(self.solarize_probability, B, generator)
        return {"blurred": blurred, "sigma": sigma, "solarized": solarized}


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"augment: images must be uint8 [B, C, H, W] with C of 1 (grey) or 3 (RGB), "
            f"got {images.dtype} {list(images.shape)}".replace("torch.", "")
        )
