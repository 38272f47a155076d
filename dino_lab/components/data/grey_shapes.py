"""Embedded data: grey objects made of parts on cluttered backgrounds."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from dino_lab.components.data._drawing import Drawn, grid, uniforms
from dino_lab.components.data._grey_render import CLASSES, MOST_PARTS, coverage, texture
from dino_lab.components.data._storage import Split
from dino_lab.registry import register

_PERIOD = 0.35  # of the materials on average, in halves of the image
_CELLS = 8  # of a side of the backgrounds


@register("data", "grey_shapes")
class GreyShapes(Drawn):
    """Grey objects, each a class-specific arrangement of 2-3 parts, on a few shared noise backgrounds.

    These were the data `shapes` before version 0.2.0, with the same images bit for bit.
    Parts are made of striped and chequered materials whose light and dark fall differently in every image, so
    that an object is on average as bright as its background. Size, position, rotation and the places of the
    parts vary as well, and none of it tells anything about the class. An image is grey in three equal
    channels; it depends on (seed, split, index) alone, and its label is index % classes. `max_shift` is in
    halves of the image, `max_rotation` in radians, `jitter` (of the parts) in radii of the object. A pixel
    has the range 1: `contrast` is how far materials go from the middle, `clutter` the range of the
    backgrounds, `noise` that of the noise of each pixel. `backgrounds` is how many there are: of many, or of
    strong ones, the backgrounds are learned before the objects.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        size: Annotated[int, Field(ge=16, description="side of the images, in pixels")] = 32,
        classes: Annotated[int, Field(ge=2, le=len(CLASSES), description="kinds of objects")] = 10,
        train_images: Annotated[int, Field(gt=0, description="images of the training split")] = 4000,
        test_images: Annotated[int, Field(gt=0, description="images of the test split")] = 1000,
        seed: Annotated[int, Field(ge=0, lt=2**28, description="of everything that is drawn")] = 0,
        max_shift: Annotated[
            float, Field(ge=0, le=0.5, description="furthest an object is from the middle, in half images")
        ] = 0.45,
        max_rotation: Annotated[
            float, Field(ge=0, le=math.pi, description="largest rotation to either side, in radians")
        ] = 0.3,
        jitter: Annotated[
            float, Field(ge=0, le=0.2, description="furthest a part moves in its object, in object radii")
        ] = 0.15,
        contrast: Annotated[
            float, Field(gt=0, le=0.5, description="how far materials go from grey; pixels range over 1")
        ] = 0.35,
        clutter: Annotated[
            float, Field(ge=0, le=1, description="range of the backgrounds; pixels range over 1")
        ] = 0.45,
        noise: Annotated[
            float, Field(ge=0, le=1, description="range of the noise of single pixels, which range over 1")
        ] = 0.4,
        backgrounds: Annotated[
            int, Field(gt=0, description="number of backgrounds, which both splits share")
        ] = 16,
    ) -> None:
        self.size, self.seed = size, seed
        self._names = tuple(CLASSES)[:classes]
        self.max_shift, self.max_rotation, self.jitter = max_shift, max_rotation, jitter
        self.contrast, self.noise = contrast, noise
        self._backgrounds = _backgrounds(seed, size, clutter, backgrounds)
        train, test = self._split("train", train_images, device), self._split("test", test_images, device)
        super().__init__(train, test, self._names, size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def _draw(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images uint8 [N, 3, H, W], labels [N] and part masks uint8 [N, H, W]."""
        labels = indices % len(self._names)
        images = torch.empty(len(indices), 1, self.size, self.size, dtype=torch.uint8)
        parts = torch.empty(len(indices), self.size, self.size, dtype=torch.uint8)
        for label, name in enumerate(self._names):
            rows = (labels == label).nonzero()[:, 0]
            if len(rows):
                images[rows], parts[rows] = self._draw_class(name, split, indices[rows])
        return images.repeat(1, 3, 1, 1), labels, parts

    def _draw_class(self, name: str, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Grey images uint8 [N, 1, H, W] and part masks uint8 [N, H, W] of one class."""
        number = int(split == "test")
        random = uniforms(self.seed, number, indices, 5 + 6 * MOST_PARTS, stream=0)
        canvas = self._backgrounds[(random[:, 0] * len(self._backgrounds)).long()]  # [N, H, W]
        parts = torch.zeros(len(indices), self.size, self.size, dtype=torch.uint8)
        x, y, radius = self._pose(random[:, 1:5])
        for i, part in enumerate(CLASSES[name]):
            own = (random[:, 5 + 6 * i : 11 + 6 * i] * 2 - 1)[..., None, None].unbind(
                1
            )  # 6 of [N, 1, 1], -1..1
            offset_x = x - (part.x + self.jitter * own[0]) * radius
            offset_y = y - (part.y + self.jitter * own[1]) * radius
            scale = part.radius * (1 + self.jitter * own[2]) * radius
            alpha = coverage(part.shape, offset_x, offset_y, scale, self.size)
            period = _PERIOD * (1 + 0.3 * own[3])
            wave = texture(part.material, offset_x, offset_y, period, (own[4], own[5]))
            canvas = canvas + alpha * (0.5 + self.contrast * wave - canvas)
            parts[alpha >= 0.5] = i + 1
        grain = uniforms(self.seed, number, indices, self.size**2, stream=1).view_as(canvas)
        canvas = canvas + self.noise * (grain - 0.5)
        return (canvas[:, None].clamp(0, 1) * 255).round().to(torch.uint8), parts

    def _pose(self, random: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coordinates [N, H, W] that rotate and move with the object, and its radius [N, 1, 1]."""
        x, y = grid(self.size)
        shift_x, shift_y, rotation, growth = random[..., None, None].unbind(1)  # [N, 1, 1]
        angle = (rotation * 2 - 1).double() * self.max_rotation
        cosine, sine = angle.cos().float(), angle.sin().float()
        x, y = x - (shift_x * 2 - 1) * self.max_shift, y - (shift_y * 2 - 1) * self.max_shift
        return cosine * x + sine * y, cosine * y - sine * x, 0.5 + 0.3 * growth


def _backgrounds(seed: int, size: int, clutter: float, count: int) -> Tensor:
    """Blended cells of grey noise [count, H, W]: 0.5 on average, in a range of `clutter`."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.rand(count, 1, _CELLS, _CELLS, generator=generator)
    return 0.5 + clutter * (F.interpolate(cells, size, mode="bilinear")[:, 0] - 0.5)
