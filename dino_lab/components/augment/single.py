"""One crop of each image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino_lab.components.augment._operations import Pixels, ViewOperations
from dino_lab.registry import Flat, register
from dino_lab.types import Images, Views


@register("augment", "single")
class Single(nn.Module):
    """One view of each image, for supervised training; it is compared with the teacher's output for it.

    By default it is only cropped and mirrored, as classifiers are trained (Szegedy et al., arXiv 1409.4842,
    Sec. 6, with a milder crop).
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        size: Pixels = 224,
        operations: Flat[ViewOperations] = ViewOperations(
            scale=(0.25, 1.0), jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0
        ),
    ) -> None:
        super().__init__()
        self.policy = operations.views(size)
        self.groups = ((1, size),)
        self.register_buffer("pairs", torch.ones(1, 1, dtype=torch.int8))

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to one group of one view."""
        return self.forward_share(images, generator, len(images), 0)

    def forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """The crops of some images of a batch, from position `first` on: see the protocol."""
        return Views([self.policy(images, generator, batch, first)], self.pairs)
