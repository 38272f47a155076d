"""Patch triplets: an anchor, a patch of the same image, and a patch of another image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino_lab.components.augment._operations import Pixels, ViewOperations
from dino_lab.components.augment._other_image import check_two_images, show_other_image, triplet_pairs
from dino_lab.registry import Flat, register
from dino_lab.types import Images, Views


@register("augment", "triplet")
class Triplet(nn.Module):
    """Three patches of each sample: an anchor, patch A of the same image, and patch B of another image.

    The anchor is pulled towards A and pushed away from B; A and B are only targets. B comes from the image
    before in the batch, for the first from the last, so never from its own where there are two. Teacher and
    student see all three. By default patches are cut and coloured as DINO's local crops are.
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        size: Pixels = 96,
        operations: Flat[ViewOperations] = ViewOperations(scale=(0.05, 0.4)),
    ) -> None:
        super().__init__()
        self.policy = operations.views(size, 3)
        self.groups = ((3, size),)
        self.register_buffer("pairs", triplet_pairs())

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to one group of three views; UserError if B is 1."""
        check_two_images(images, "triplet", "patch")
        crops = self.policy(images, generator)  # [3, B, C, H, W]
        show_other_image(crops)
        return Views([crops], self.pairs)
