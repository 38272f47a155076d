"""Random resized crops."""

from __future__ import annotations

from typing import Any

import torch
from kornia.augmentation import GeometricAugmentationBase2D
from torch import Tensor

from dino_lab.kernels.crops.resize import resample, sample_boxes
from dino_lab.registry import register
from dino_lab.registry.ranges import Scale


@register("operation", "crop")
class Crop(GeometricAugmentationBase2D):
    """A random part of the image, resized as Pillow does: bicubic and smoothed.

    From Szegedy et al., arXiv 1409.4842, Sec. 6.
    The part's share of the area is uniform in `scale`, the logarithm of its aspect ratio uniform from 3/4 to
    4/3 (torchvision.transforms.RandomResizedCrop).
    """

    step = "crop"
    _compute_matrix_lazily = True

    def __init__(
        self,
        pixels: int,
        *,
        scale: Scale = (0.08, 1.0),
    ) -> None:
        super().__init__(p=1.0)
        self.size, self.scale = pixels, scale

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """Boxes [N, 4] of whole pixels: top, left, height, width."""
        N, _, H, W = batch_shape
        return {"boxes": sample_boxes((N,), H, W, self.scale)}

    def generate_within(self, sizes: Tensor) -> dict[str, Tensor]:
        """Boxes as above, each in an image of its own height and width, int64 [N, 2]."""
        return {"boxes": sample_boxes((len(sizes),), sizes[:, 0], sizes[:, 1], self.scale)}

    def compute_transformation(
        self, input: Tensor, params: dict[str, Tensor], flags: dict[str, Any]
    ) -> Tensor:
        """Matrices [N, 3, 3] from a pixel's place in the image to its place in the crop, (x, y, 1)."""
        top, left, height, width = params["boxes"].to(input).unbind(1)
        matrix = torch.eye(3).to(input).repeat(len(top), 1, 1)
        for axis, (start, length) in enumerate(((left, width), (top, height))):
            factor = self.size / length
            matrix[:, axis, axis] = factor
            matrix[:, axis, 2] = (0.5 - start) * factor - 0.5  # pixels are met at their middle
        return matrix

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """[N, C, H, W] in 0..1 to [N, C, size, size]."""
        boxes = params["boxes"].to(input)[None]
        return resample(input, boxes, torch.zeros_like(boxes[..., 0], dtype=torch.bool), self.size)[0]
