"""Strided convolutions in bfloat16 on a CPU, where the map has become as small as the kernel.

torch 2.14 leaves the gradient of the weights uninitialised there, if the stride is larger than 1 and there is
one output position: in a ResNet, a last stage that receives a map of 1x1. With one position the stride means
nothing, so the same convolution is computed with a stride of 1, which is right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class OnePositionConv2d(nn.Conv2d):
    """The same layer, computed without its stride where it has one output position."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or not self._has_one_position(input):
            return super()._conv_forward(input, weight, bias)
        below, right = self._reach()
        padded = F.pad(input, self._reversed_padding_repeated_twice)[..., :below, :right]
        return F.conv2d(padded, weight, bias, 1, 0, self.dilation, self.groups)

    def _reach(self) -> tuple[int, int]:
        """Pixels that the kernel covers, down and right."""
        below, right = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return below, right

    def _has_one_position(self, input: Tensor) -> bool:
        left, right, above, below = self._reversed_padding_repeated_twice
        padded = (input.shape[-2] + above + below, input.shape[-1] + left + right)
        sizes = zip(padded, self._reach(), self.stride, strict=True)
        return all(size - reach < stride for size, reach, stride in sizes)


def use_one_position_convolution(part: nn.Module, device: torch.device) -> None:
    """Let the plain strided convolutions of what is computed on a device be right for one position."""
    if device.type == "cpu":
        for module in part.modules():
            if type(module) is nn.Conv2d and max(module.stride) > 1 and module.padding_mode == "zeros":
                module.__class__ = OnePositionConv2d
