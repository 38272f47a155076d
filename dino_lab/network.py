"""Backbone, head and predictor, applied to crops of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dino_lab.kernels import gpu
from dino_lab.kernels.rounded_weights import rounded_weights
from dino_lab.types import Output


class Network(nn.Module):
    """Normalisation, backbone, head and (optional) predictor: crops by size to an `Output`."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module | None = None,
        *,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.predictor = predictor
        self.rounded_to: torch.dtype | None = None  # weights of products in `forward`, all at once
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def encode(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] in 0..1 to backbone features [N, D]."""
        return self.backbone(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Images [..., C, H, W] in 0..1 to what the backbone expects."""
        return (images - self.mean).div_(self.std)

    def forward(self, crops: list[Tensor]) -> Output:
        """One backbone call per size, or one for all sizes, and one head call for all views."""
        if self.rounded_to is None:
            return self._apply_to(crops)
        with rounded_weights(self, self.rounded_to):
            return self._apply_to(crops)

    def _apply_to(self, crops: list[Tensor]) -> Output:
        together = getattr(self.backbone, "features_of_sizes", None)  # of the ability `JoinsSizes`
        if together is None or len(crops) == 1 or not gpu.launches_take_time(crops[0].device):
            return self.project(torch.cat([per_view(self.encode, group) for group in crops]))
        features = together([self.normalize(group.flatten(0, 1)) for group in crops])
        return self.project(features.unflatten(0, (-1, crops[0].shape[1])))  # [S, B, D]

    def project(self, features: Tensor) -> Output:
        """Features [S, B, D] to the outputs of head and predictor."""
        z = per_view(self.head, features)  # [S, B, K]
        p = z if self.predictor is None else per_view(self.predictor, z)
        return Output(features, z, p)


def per_view(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a function made for [N, ...] to [V, B, ...]."""
    y = function(x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
