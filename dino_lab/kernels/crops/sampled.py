"""The parameters of the operations on all crops, sampled before any crop is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dino_lab.kernels import gpu


@dataclass(frozen=True)
class SampledParameters:
    """One pass of operations, in this order, over V crops of each of B images; None: happens to none."""

    boxes: Tensor | None = None  # [V, B, 4]: top, left, height, width; None: there are crops already
    flipped: Tensor | None = None  # bool [V, B]
    angle: Tensor | None = None  # [V, B], in degrees
    blends: Tensor | None = None  # [V, B, 6, 3], see `colour.jitter`
    hue_shift: Tensor | None = None  # [V, B], in turns of the colour circle
    grey: Tensor | None = None  # bool [V, B]
    blurred: Tensor | None = None  # bool [V, B]
    sigma: Tensor | None = None  # [V, B], of the blur, in pixels of the crop
    solarized: Tensor | None = None  # bool [V, B]

    def flat(self) -> SampledParameters:
        """With V and B made one."""
        return self._map(lambda part: part.flatten(0, 1))

    def for_each_band(self, channels: int) -> SampledParameters:
        """Of images of so many channels as of so many grey images side by side: [V, B * C]."""
        return self._map(lambda part: part.repeat_interleave(channels, dim=1))

    def to(self, device: torch.device) -> SampledParameters:
        """On a device, as `gpu.moved`."""
        return self._map(lambda part: gpu.moved(part, device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> SampledParameters:
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        changed: dict[str, Any] = {name: None if part is None else function(part) for name, part in parts}
        return SampledParameters(**changed)
