"""Tensors that travel between components.

Shape letters, everywhere in this package:
    B samples in the batch        S views the student sees     D backbone features
    C, H, W image                 T views the teacher sees     K head outputs
    N images, of any view         V views of one size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

VOID = 255  # of a map of objects or classes: pixels that nobody says anything about


@dataclass(frozen=True)
class WholeImages:
    """B images of C channels, each of its own height and width, uint8, one after the other in a buffer.

    Some of them, as `images[rows]`, share the buffer; iteration gives each as [C, H, W].
    """

    pixels: Tensor  # uint8 [bytes]
    places: Tensor  # int64 [B], on the CPU: where in the buffer an image begins
    sizes: Tensor  # int64 [B, 2], on the CPU: height and width
    channels: int

    @classmethod
    def of(cls, images: Sequence[Tensor]) -> Self:
        """A buffer of at least one image uint8 [C, H, W], on the device where they lie."""
        sizes = torch.tensor([image.shape[1:] for image in images])
        lengths = torch.tensor([image.numel() for image in images])
        pixels = torch.cat([image.reshape(-1) for image in images])
        return cls(pixels, lengths.cumsum(0) - lengths, sizes, images[0].shape[0])

    @classmethod
    def of_one_size(cls, images: Tensor) -> Self:
        """Images uint8 [B, C, H, W], which are the buffer."""
        B, C, H, W = images.shape
        places = torch.arange(B) * (C * H * W)
        return cls(images.reshape(-1), places, torch.tensor([[H, W]]).expand(B, 2), C)

    @property
    def device(self) -> torch.device:
        """Where the pixels lie."""
        return self.pixels.device

    @property
    def nbytes(self) -> int:
        """Bytes of the images, whatever else the buffer holds."""
        return self.channels * int(self.sizes.prod(1).sum())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Some of the images, without a copy of their pixels."""
        return replace(self, places=self.places[rows], sizes=self.sizes[rows])

    def __iter__(self) -> Iterator[Tensor]:
        for place, (H, W) in zip(self.places.tolist(), self.sizes.tolist(), strict=True):
            yield self.pixels[place : place + self.channels * H * W].view(self.channels, H, W)

    def bands(self) -> Self:
        """Each band as an image of one channel, [B * C], in the same buffer."""
        C, each = self.channels, self.sizes.prod(1)
        places = self.places[:, None] + each[:, None] * torch.arange(C)
        return replace(self, places=places.flatten(), sizes=self.sizes.repeat_interleave(C, 0), channels=1)

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """On a device; of a larger buffer these images alone are moved."""
        if self.device == device:
            return self
        alone = self._alone()
        return replace(alone, pixels=alone.pixels.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """In memory from which a GPU copies while the host goes on."""
        alone = self._alone()
        return replace(alone, pixels=alone.pixels.pin_memory())

    def _alone(self) -> Self:
        """With a buffer that holds nothing else."""
        return self if self.nbytes == self.pixels.nbytes else self.of(list(self))


Images = Tensor | WholeImages  # uint8 [B, C, H, W], or each of its own size


@dataclass(frozen=True)
class Views:
    """Augmented crops of one batch, and which of them are compared."""

    crops: list[Tensor]  # by size, each [V, B, C, H, W], float in 0..1; the teacher sees crops[0] only
    pairs: Tensor  # [S, T] int8: +1 pull together, -1 push apart, 0 ignore


@dataclass(frozen=True)
class Output:
    """What a network says about every view it saw."""

    features: Tensor  # [S, B, D] from the backbone
    z: Tensor  # [S, B, K] from the head
    p: Tensor  # [S, B, K] from the predictor, or z itself
    tokens: Tensor | None = None  # [T, B, K', h, w] from the token head, for crops[0]; None without one


@dataclass(frozen=True)
class BackboneOutput:
    """All outputs of a backbone for N images, from one forward; None for those that it does not have."""

    features: Tensor  # [N, D]
    blocks: Tensor | None = None  # [N, blocks, D]: CLS after the final norm, of the last blocks, last first
    tokens: Tensor | None = None  # [N, D, h, w], of the patches, or the last feature map
    attention: Tensor | None = None  # [N, heads, h, w], of the last block, from CLS to the patches

    @classmethod
    def cat(cls, outputs: Sequence[Self]) -> Self:
        """The outputs for several batches as those for one."""

        def column(name: str) -> Tensor | None:
            values = [getattr(output, name) for output in outputs]
            return None if values[0] is None else torch.cat(values)

        columns: dict[str, Any] = {field.name: column(field.name) for field in fields(cls)}
        return cls(**columns)

    def __getitem__(self, rows: slice) -> Self:
        """Some of the images."""
        return self._map(lambda tensor: tensor[rows])

    def float(self) -> Self:
        """All in float32."""
        return self._map(Tensor.float)

    def to(self, device: torch.device) -> Self:
        """All on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: None if v is None else function(v) for name, v in values.items()}
        return type(self)(**changed)


def at_least_float32(x: Tensor) -> Tensor:
    """In float32, or as it is where that is float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


Look = BackboneOutput  # its former name, which plugins import
