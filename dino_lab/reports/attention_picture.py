"""What a network looks at in one image, as a picture."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import Maps, mass_masks
from dino_lab.imaging.pictures import cut_out, overlay, plain, png, sheet


def attended(image: Tensor, maps: Maps, head: str, mass: float) -> bytes:
    """A PNG of an image uint8 [C, H, W]: its maps over it, and below what holds a share `mass` of each.

    `head` is `all`, `mean`, or the number of one, from 1 on; a UserError where there is no such head.
    """
    names, values = _chosen(maps, head)
    masks = mass_masks(values, mass)
    blank = Image.new("RGB", plain(image).size, "white")
    above = [("image", plain(image))]
    below = [(f"{100 * mass:g} % of each:", blank)]
    for name, one, mask in zip(names, values, masks, strict=True):
        above.append((name, overlay(image, one)))
        below.append((name, cut_out(image, mask)))
    return png(sheet([above, below]))


def _chosen(maps: Maps, head: str) -> tuple[list[str], Tensor]:
    """Names and maps [heads, h, w] of the first image."""
    names, values = maps.names(), maps.values[0]
    if head == "all":
        return names, values
    if head == "mean":
        return [f"mean of {len(names)} heads" if len(names) > 1 else names[0]], values.mean(0, keepdim=True)
    if int(head) > len(names):
        raise UserError(f"--head {head}: there is only {', '.join(names)}")
    return [names[int(head) - 1]], values[int(head) - 1 : int(head)]
