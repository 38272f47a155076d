"""A frozen network, as evaluators ask it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.network import Network


@dataclass(frozen=True)
class Encoder:
    """Uint8 images [B, C, H, W] to float32 features [B, D], and to what else the backbone can give.

    Images may lie on any device; they are resized to `size`, that of the teacher's crops. No gradient flows,
    and the network is in evaluation mode as long as an evaluator has the encoder.
    """

    network: Network
    size: int
    autocast: Callable[[], AbstractContextManager[object]]

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D]."""
        return self._give(self.network.encode, images)

    def ask(self, capability: str, images: Tensor) -> Tensor:
        """What the backbone's method of that name gives, such as `tokens`; a UserError where it has none."""
        backbone, normalize = self.network.backbone, self.network.normalize
        if not hasattr(backbone, capability):
            raise UserError(f"the backbone, {type(backbone).__name__}, gives no {capability}")
        return self._give(lambda x: getattr(backbone, capability)(normalize(x)), images)

    @torch.no_grad()
    def _give(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        x = images.to(self.network.mean.device).float() / 255
        if x.shape[-1] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True).clamp(0, 1)
        with self.autocast():
            return function(x).float()
