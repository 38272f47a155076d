"""Where a network looks: its maps, and the masks that hold a share of their mass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.types import BackboneOutput


@dataclass(frozen=True)
class Maps:
    """Maps of some images, without negative entries, and their kind."""

    kind: Literal["attention", "similarity"]
    values: Tensor  # [N, heads, h, w]; a similarity has one head

    def names(self) -> list[str]:
        """`head 1`, `head 2`, ... of an attention, `similarity` of a similarity."""
        if self.kind == "similarity":
            return ["similarity"]
        return [f"head {i + 1}" for i in range(self.values.shape[1])]

    def mean(self) -> Tensor:
        """The mean over the heads [N, h, w]."""
        return self.values.mean(1)


def maps_of(output: BackboneOutput) -> Maps:
    """The attention of CLS in the last block, or where there is none the similarity of the tokens.

    A UserError where the network gives neither, or they are not finite.
    """
    if output.attention is not None:
        maps = Maps("attention", output.attention)
    elif output.tokens is not None:
        maps = Maps("similarity", similarity(output.tokens))
    else:
        raise UserError("the backbone gives neither attention nor tokens, so there is no map of it")
    if not maps.values.isfinite().all():
        raise UserError(f"the {maps.kind} is not finite; the network has diverged")
    return maps


def similarity(tokens: Tensor) -> Tensor:
    """Cosine of each token [N, D, h, w] and the mean token of its image, less the least one: [N, 1, h, w].

    The features of a network that pools its tokens are their mean, to which the tokens most like it
    contribute most. This is not attention, and has another name wherever it is shown.
    """
    cosine = F.cosine_similarity(tokens, tokens.mean((2, 3), keepdim=True), dim=1)  # [N, h, w]
    return (cosine - cosine.amin((1, 2), keepdim=True))[:, None]


def mass_masks(maps: Tensor, mass: float) -> Tensor:
    """Masks [..., h, w] of the largest entries of maps [..., h, w] that hold a share `mass` of their sum.

    Sorted ascending and summed up, an entry is kept where the sum so far exceeds 1 - mass of the whole (DINO,
    arXiv 2104.14294, Sec. 4.2.2 and appendix D); where all are 0 none is.
    """
    ordered, order = maps.double().flatten(-2).sort(dim=-1, stable=True)
    rising = ordered.cumsum(-1)
    kept = rising > (1 - mass) * rising[..., -1:]
    return torch.zeros_like(kept).scatter(-1, order, kept).unflatten(-1, maps.shape[-2:])


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, heads, h, w] at `size`, each pixel as the cell that it lies in."""
    return F.interpolate(masks.float(), size, mode="nearest").bool()
