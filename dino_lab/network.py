"""Backbone, head and predictor, applied to crops of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dino_lab.errors import UserError
from dino_lab.kernels import gpu
from dino_lab.kernels.rounded_weights import rounded_weights
from dino_lab.types import Output

# What a backbone gives for V crops of one size of B images: features [V, B, D], and tokens [V, B, D, h, w] or
# none.
Encoded = tuple[Tensor, ...]
# Parts of a network behind its backbone; the last two may be None.
HEADS = ("head", "predictor", "token_head")


class Network(nn.Module):
    """Normalisation, backbone, head and (optional) predictor: crops by size to an `Output`.

    With a `token_head` the patch tokens of the first group of crops, which the teacher sees, go through it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        predictor: nn.Module | None = None,
        *,
        token_head: nn.Module | None = None,
        mean: tuple[float, ...] = (0.0,),
        std: tuple[float, ...] = (1.0,),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.predictor = predictor
        self.token_head = token_head
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
        takes_time = gpu.launches_take_time(crops[0].device)
        if together is None or len(crops) == 1 or self.token_head is not None or not takes_time:
            encoded = [self.encode_views(group, tokens=i == 0) for i, group in enumerate(crops)]
            return self.project(torch.cat([found[0] for found in encoded]), *encoded[0][1:])
        features = together([self.normalize(group.flatten(0, 1)) for group in crops])
        return self.project(features.unflatten(0, (-1, crops[0].shape[1])))  # [S, B, D]

    def encode_views(self, crops: Tensor, *, tokens: bool) -> Encoded:
        """Features of crops of one size [V, B, C, H, W]; with a token head, if asked for, tokens as well."""
        if self.token_head is None or not tokens:
            return (per_view(self.encode, crops),)
        found = self._encode_with_tokens(crops.flatten(0, 1))
        return tuple(x.unflatten(0, crops.shape[:2]) for x in found)

    def _encode_with_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, D] and tokens [N, D, h, w], in one forward where the backbone `GivesOutputs`."""
        x = self.normalize(images)
        outputs = getattr(self.backbone, "outputs", None)
        if outputs is None or isinstance(outputs, nn.Module):
            return self.backbone(x), self.backbone.tokens(x)  # type: ignore[operator]
        found = outputs(x, 0)
        if found.tokens is None:
            raise UserError(f"{type(self.backbone).__name__} gives no patch tokens")
        return found.features, found.tokens

    def project(self, features: Tensor, tokens: Tensor | None = None) -> Output:
        """Features [S, B, D] and tokens [T, B, D, h, w] to the outputs of the heads and the predictor."""
        z = per_view(self.head, features)  # [S, B, K]
        p = z if self.predictor is None else per_view(self.predictor, z)
        return Output(features, z, p, None if tokens is None else self._project_tokens(tokens))

    def _project_tokens(self, tokens: Tensor) -> Tensor:
        """[T, B, D, h, w] to [T, B, K', h, w]: the token head sees each token as a sample."""
        assert self.token_head is not None, "there are no tokens without one"
        samples = tokens.movedim(2, -1)  # [T, B, h, w, D]
        projected = self.token_head(samples.flatten(0, -2))
        return projected.unflatten(0, samples.shape[:-1]).movedim(-1, 2)


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
