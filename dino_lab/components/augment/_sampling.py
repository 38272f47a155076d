"""The parameters of all crops, sampled before any crop is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class SampledParameters:
    """The operations on V crops of each of B images; None where an operation happens to none of them."""

    boxes: Tensor  # [V, B, 4]: top, left, height, width
    flipped: Tensor  # bool [V, B]
    angle: Tensor | None  # [V, B], in degrees
    blends: Tensor | None  # [V, B, 6, 3], see `_colour.jitter`
    hue_shift: Tensor | None  # [V, B], in turns of the colour circle
    grey: Tensor | None  # bool [V, B]
    blurred: Tensor | None  # bool [V, B]
    sigma: Tensor | None  # [V, B], of the blur, in pixels of the crop
    solarized: Tensor | None  # bool [V, B]

    def of(self, images: slice) -> SampledParameters:
        """Those of some images."""
        return self._map(lambda part: part[:, images])

    def flat(self) -> SampledParameters:
        """With V and B made one."""
        return self._map(lambda part: part.flatten(0, 1))

    def to(self, device: torch.device) -> SampledParameters:
        """On a device; copied from pinned memory, for which the host does not wait."""
        if device.type == "cuda":
            return self._map(lambda part: part.pin_memory().to(device, non_blocking=True))
        return self._map(lambda part: part.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> SampledParameters:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed: dict[str, Any] = {name: None if part is None else function(part) for name, part in parts}
        return SampledParameters(**changed)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """In [0, 1), on the CPU: for the same seed a GPU would draw other numbers."""
    return torch.rand(*shape, generator=generator)


def between(low: float, high: float, share: Tensor) -> Tensor:
    """The number that lies `share` of the way from `low` to `high`."""
    return low + (high - low) * share


def per_view(probability: tuple[float, ...], B: int, generator: torch.Generator) -> Tensor:
    """Bool [V, B]: true with the probability of the view."""
    uniforms = uniform(generator, len(probability), B)
    return torch.stack([row < p for row, p in zip(uniforms, probability, strict=True)])
