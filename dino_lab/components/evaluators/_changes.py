"""Single changes of images, such as augmentations make, each in several strengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.building.seeding import drawing_from
from dino_lab.protocols import Operation


@dataclass(frozen=True)
class ImageChange:
    """Images float [N, C, H, W] in 0..1, a strength and a source of random numbers to images of that shape.

    Where a change has two directions, images at even places get the one, those at odd places the other.
    """

    unit: str
    strengths: tuple[float, ...]
    apply: Callable[[Tensor, float, torch.Generator], Tensor]

    def __call__(self, images: Tensor, strength: float, generator: torch.Generator) -> Tensor:
        """Uint8 [N, C, H, W] from and to."""
        changed = self.apply(images.float() / 255, strength, generator)
        return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


def _crop(images: Tensor, area_lost: float, generator: torch.Generator) -> Tensor:
    """A square window of the image's shape at a random place of each image, brought back to its size."""
    from torchvision.transforms.v2 import functional

    height, width = images.shape[-2:]
    side = math.sqrt(1 - area_lost)
    size = max(1, round(height * side)), max(1, round(width * side))
    places = torch.rand(len(images), 2, generator=generator).tolist()
    windows = [
        functional.crop(image, round(y * (height - size[0])), round(x * (width - size[1])), size[0], size[1])
        for image, (y, x) in zip(images, places, strict=True)
    ]
    return functional.resize(torch.stack(windows), [height, width], antialias=True)


def _rotation(images: Tensor, degrees: float, _: torch.Generator) -> Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    def turned(x: Tensor, angle: float) -> Tensor:
        return functional.rotate(x, angle, interpolation=InterpolationMode.BILINEAR)

    return _both_ways(images, lambda x: turned(x, degrees), lambda x: turned(x, -degrees))


def _factor(name: str) -> Callable[[Tensor, float, torch.Generator], Tensor]:
    """The adjustment of torchvision of that name, by 1 + strength and by 1 - strength."""

    def apply(images: Tensor, strength: float, _: torch.Generator) -> Tensor:
        from torchvision.transforms.v2 import functional

        adjust = getattr(functional, f"adjust_{name}")
        return _both_ways(images, lambda x: adjust(x, 1 + strength), lambda x: adjust(x, 1 - strength))

    return apply


def _hue(images: Tensor, shift: float, _: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import adjust_hue

    return _both_ways(images, lambda x: adjust_hue(x, shift), lambda x: adjust_hue(x, -shift))


def _blur(images: Tensor, share: float, _: torch.Generator) -> Tensor:
    """Gaussian, of a deviation that is a share of the image's width; three deviations to each side."""
    from torchvision.transforms.v2.functional import gaussian_blur

    sigma = share * images.shape[-1]
    radius = min(max(1, math.ceil(3 * sigma)), min(images.shape[-2:]) - 1)
    return gaussian_blur(images, [2 * radius + 1] * 2, [sigma] * 2)


def _grey(images: Tensor, share: float, _: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    return images.lerp(rgb_to_grayscale(images, num_output_channels=images.shape[1]), share)


def _solarize(images: Tensor, share: float, _: torch.Generator) -> Tensor:
    """Values of at least 1 - share are inverted."""
    return torch.where(images >= 1 - share, 1 - images, images)


def _noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator).to(images.device)


def _flip(images: Tensor, _: float, __: torch.Generator) -> Tensor:
    return images.flip(-1)


def _both_ways(images: Tensor, up: Callable[[Tensor], Tensor], down: Callable[[Tensor], Tensor]) -> Tensor:
    changed = images.clone()
    changed[::2] = up(images[::2])
    if len(images) > 1:
        changed[1::2] = down(images[1::2])
    return changed


def by_operation(operation: Operation) -> ImageChange:
    """The change that an operation makes, with parameters drawn for every image."""

    def apply(images: Tensor, _: float, generator: torch.Generator) -> Tensor:
        with drawing_from(generator):
            params = operation.forward_parameters(tuple(images.shape))
        return operation.forward(images, params=params)

    return ImageChange("as given", (1.0,), apply)


CHANGES: dict[str, ImageChange] = {
    "crop": ImageChange("share of the area cut away", (0.2, 0.4, 0.6, 0.8), _crop),
    "rotation": ImageChange("degrees, to either side", (5, 15, 45, 90), _rotation),
    "brightness": ImageChange("factor 1 plus or minus", (0.1, 0.2, 0.4, 0.8), _factor("brightness")),
    "contrast": ImageChange("factor 1 plus or minus", (0.1, 0.2, 0.4, 0.8), _factor("contrast")),
    "saturation": ImageChange("factor 1 plus or minus", (0.1, 0.2, 0.4, 0.8), _factor("saturation")),
    "hue": ImageChange("turns of the colour circle, to either side", (0.05, 0.1, 0.25, 0.5), _hue),
    "blur": ImageChange("deviation, share of the width", (0.02, 0.04, 0.07, 0.1), _blur),
    "greyscale": ImageChange("share of grey mixed in", (0.25, 0.5, 0.75, 1.0), _grey),
    "solarize": ImageChange("share of the range turned over", (0.1, 0.25, 0.5, 0.75), _solarize),
    "noise": ImageChange("deviation, share of the range", (0.02, 0.05, 0.1, 0.2), _noise),
    "flip": ImageChange("left to right", (1.0,), _flip),
}
