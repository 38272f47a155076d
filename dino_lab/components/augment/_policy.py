"""What happens to one group of views: crop, flip, turn, colour, blur, solarize."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.components.augment._blur import gaussian_blur
from dino_lab.components.augment._colour import grayscale, jitter, solarize
from dino_lab.components.augment._crop import draw_boxes, resample
from dino_lab.errors import UserError


@dataclass(frozen=True)
class Policy:
    """Operations, in the order of the DINO code (main_dino.py), for views of one size.

    Blur and solarize have a probability for every view, so their lengths are the number of views. All else
    is drawn alike for every view, and for every image by itself.
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
        """How many crops are made of each image."""
        return len(self.blur_probability)

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images uint8 [B, C, H, W] to crops float32 [V, B, C, size, size] in 0..1; else UserError."""
        _check(images)
        V, (B, C, H, W) = self.views, images.shape
        with torch.autocast(images.device.type, enabled=False):
            boxes = draw_boxes((V, B), H, W, self.scale, generator)
            flip = _uniform(generator, V, B) < self.flip_probability
            x = resample(images.float() / 255, boxes, flip, self.size)
            x = x.reshape(V * B, C, self.size, self.size)
            x = self._turn(x, generator)
            x = self._colour(x, generator)
            x = self._blur(x, B, generator)
            return x.view(V, B, C, self.size, self.size)

    def _turn(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.rotation:
            return x
        from kornia.geometry.transform import rotate

        angle = self.rotation * (2 * _uniform(generator, len(x)) - 1)
        return rotate(x, angle, padding_mode="reflection")

    def _colour(self, x: Tensor, generator: torch.Generator) -> Tensor:
        N = len(x)
        if self.jitter_probability:
            chosen = _uniform(generator, N) < self.jitter_probability
            uniform = _uniform(generator, 4, N)
            strengths = (self.brightness, self.contrast, self.saturation)
            factors = [_between(max(0.0, 1 - s), 1 + s, u) for s, u in zip(strengths, uniform, strict=False)]
            factor = torch.where(chosen[:, None], torch.stack(factors, dim=1), 1.0)  # [N, 3]
            turns = chosen * self.hue * (2 * uniform[3] - 1)
            x = jitter(x, factor, turns, _uniform(generator, N, 4))
        if self.grey_probability:
            x = grayscale(x, _uniform(generator, N) < self.grey_probability)
        return x

    def _blur(self, x: Tensor, B: int, generator: torch.Generator) -> Tensor:
        if any(self.blur_probability):
            chosen = _per_view(self.blur_probability, B, generator)
            sigma = _between(*self.blur_sigma, _uniform(generator, len(x)))
            x = gaussian_blur(x, sigma, chosen, self.blur_sigma[1])
        if any(self.solarize_probability):
            x = solarize(x, _per_view(self.solarize_probability, B, generator))
        return x


def _per_view(probability: tuple[float, ...], B: int, generator: torch.Generator) -> Tensor:
    """Bool [V * B]: true with the probability of the view."""
    uniform = _uniform(generator, len(probability), B)
    # Numbers, no tensor of them: copying one to a GPU would make the host wait for it.
    return torch.cat([u < p for u, p in zip(uniform, probability, strict=True)])


def _between(low: float, high: float, uniform: Tensor) -> Tensor:
    return low + (high - low) * uniform


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=generator.device)


def _check(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(
            f"augment: images must be uint8 [B, C, H, W] with C of 1 (grey) or 3 (RGB), "
            f"got {images.dtype} {list(images.shape)}".replace("torch.", "")
        )
