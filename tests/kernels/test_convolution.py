from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dino_lab.kernels.convolution import OnePositionConv2d, use_one_position_convolution

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (3, 3), (4, 4), (1, 8)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 3), (5, 2), (5, 4), (7, 4), (2, 2)])
@pytest.mark.parametrize("groups", [1, 8])
def test_gradients_in_bfloat16_are_those_in_float64(
    size: tuple[int, int], kernel: int, stride: int, groups: int
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, kernel, stride=stride, padding=kernel // 2, groups=groups)
    # Values that bfloat16 holds exactly, so that products are exact and sums nearly so.
    layer.weight.data, images = (
        layer.weight.data.bfloat16().float(),
        torch.randn(4, 8, *size).bfloat16().float(),
    )
    right = copy.deepcopy(layer).double()
    use_one_position_convolution(layer, CPU)
    assert type(layer) is OnePositionConv2d
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(images)
    wanted = right(images.double())
    rest = torch.full_like(layer.weight, torch.nan)  # what uninitialised memory may hold
    del rest
    weights = torch.randn_like(wanted).bfloat16()
    out.backward(weights)
    wanted.backward(weights.double())
    torch.testing.assert_close(out.double(), wanted, rtol=0.02, atol=0.02)
    scale = float(right.weight.grad.abs().max())
    torch.testing.assert_close(layer.weight.grad.double(), right.weight.grad, rtol=0, atol=0.01 * scale)


def test_without_autocast_nothing_changes() -> None:
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    images = torch.randn(2, 2, 1, 1)
    before = layer(images)
    use_one_position_convolution(layer, CPU)
    assert torch.equal(layer(images), before)


def test_other_convolutions_are_left_alone() -> None:
    layers = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3, stride=2, padding_mode="reflect"))
    use_one_position_convolution(layers, CPU)
    assert [type(layer) for layer in layers] == [nn.Conv2d, nn.Conv2d]
