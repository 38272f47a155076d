"""Three views of a sample, the third of another image: an anchor, what it is pulled to and pushed from."""

from __future__ import annotations

import torch
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.types import Images

ANCHOR, OF_SAME_IMAGE, OF_OTHER_IMAGE = range(3)


def triplet_pairs() -> Tensor:
    """[3, 3] int8, see `Views`: the first view with the second, and against the third."""
    pairs = torch.zeros(3, 3, dtype=torch.int8)
    pairs[ANCHOR, OF_SAME_IMAGE], pairs[ANCHOR, OF_OTHER_IMAGE] = 1, -1
    return pairs


def show_other_image(crops: Tensor) -> None:
    """Let the third views [3, B, ...] be those of the image before in the batch, of the first the last."""
    crops[OF_OTHER_IMAGE] = crops[OF_OTHER_IMAGE].roll(1, dims=0)


def check_two_images(images: Images, augment: str, what: str) -> None:
    """A UserError where a batch has one image alone."""
    if len(images) < 2:
        raise UserError(f"augment {augment}: a {what} of another image needs 2 images at once, got 1")
