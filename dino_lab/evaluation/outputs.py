"""What evaluators read of many images: labels, representations, masks, and the backbone's outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor

from dino_lab.types import BackboneOutput

GEM_POWER = 4.0  # of generalised-mean pooling: arXiv 2104.14294, Sec. 4.2.1
GEM_LEAST = 1e-6  # tokens are clamped to it first

Representation = Literal["features", "blocks", "mean_tokens", "gem_tokens"]
# What may be kept of each image of a split: [N, D] each, but for `blocks`, [N, blocks, D].
REPRESENTATIONS: dict[str, Callable[[BackboneOutput], Tensor | None]] = {
    "features": lambda output: output.features,
    "blocks": lambda output: output.blocks,
    "mean_tokens": lambda output: None if output.tokens is None else output.tokens.mean((2, 3)),
    "gem_tokens": lambda output: None if output.tokens is None else generalised_mean(output.tokens),
}

# What a backbone without one of them lacks.
LACKS = {
    "blocks": "CLS token in each block, as a vision transformer has",
    "mean_tokens": "patch tokens",
    "gem_tokens": "patch tokens",
}


def generalised_mean(tokens: Tensor) -> Tensor:
    """Tokens [N, D, h, w] to [N, D]: the root of the mean of their powers (GeM, arXiv 1711.02512, eq. 3)."""
    return tokens.clamp_min(GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


@dataclass(frozen=True)
class Split:
    """Labels and representations of a split, in order, on the network's device."""

    labels: Tensor  # int64 [N]
    representations: dict[str, Tensor]  # float32, by names of REPRESENTATIONS

    @property
    def features(self) -> Tensor:
        """[N, D]."""
        return self.representations["features"]

    def __getitem__(self, name: str) -> Tensor:
        return self.representations[name]


@dataclass(frozen=True)
class MaskedImages:
    """Test images, masks and boxes of what is in them, and the backbone's outputs, all on the CPU."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    masks: Tensor  # bool [N, H, W], of the object
    parts: Tensor  # uint8 [N, H, W], 0 background
    boxes: Tensor  # int64 [N, 4], x0 y0 x1 y1, the last two exclusive
    objects: Tensor  # uint8 [N, H, W], 0 background, 1, 2, ... the objects, 255 void
    classes: Tensor  # uint8 [N, H, W], 0 background, the label of the object + 1, 255 void
    output: BackboneOutput

    def first(self, count: int) -> Self:
        """The first `count` of them."""
        values: dict[str, Any] = {f.name: getattr(self, f.name)[:count] for f in fields(self)}
        return type(self)(**values)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Several as one."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        output = BackboneOutput.cat(columns.pop("output"))
        tensors: dict[str, Any] = {name: torch.cat(values) for name, values in columns.items()}
        return cls(**tensors, output=output)
