"""What evaluators are given to ask."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.encoder import Encoder
from dino_lab.errors import UserError
from dino_lab.network import Network


class Mean(nn.Module):
    """Features are a weighted mean of the pixels, tokens the pixels themselves."""

    dim = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.weight

    def tokens(self, images: Tensor) -> Tensor:
        return images * self.weight.view(3, 1, 1)


def encoder(size: int = 4) -> Encoder:
    network = Network(Mean(), nn.Identity(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    return Encoder(network, size, nullcontext)


def images(size: int) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    return torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)


def expected_tokens(images: Tensor) -> Tensor:
    rows = [((images[:, i] / 255) - m) / s * w for i, (m, s, w) in enumerate(CONSTANTS)]
    return torch.stack(rows, 1)


CONSTANTS = [(0.1, 0.5, 1.0), (0.2, 0.25, 2.0), (0.3, 1.0, 3.0)]


def test_features_and_capabilities_see_the_same_normalised_images() -> None:
    tokens = encoder().ask("tokens", images(4))
    torch.testing.assert_close(tokens, expected_tokens(images(4)))
    torch.testing.assert_close(encoder()(images(4)), tokens.mean((2, 3)))


def test_images_of_another_size_are_resized() -> None:
    small = F.interpolate(images(8).float() / 255, 4, mode="bicubic", antialias=True).clamp(0, 1) * 255
    tokens = encoder(4).ask("tokens", images(8))
    assert tokens.shape == (2, 3, 4, 4)
    torch.testing.assert_close(tokens, expected_tokens(small))


def test_no_gradient_flows() -> None:
    assert not encoder()(images(4)).requires_grad
    assert not encoder().ask("tokens", images(4)).requires_grad


def test_what_comes_out_is_float32_whatever_the_precision() -> None:
    asked = Encoder(encoder().network, 4, lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    assert asked(images(4)).dtype == asked.ask("tokens", images(4)).dtype == torch.float32


def test_a_backbone_without_the_capability_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        encoder().ask("attention", images(4))
    assert str(caught.value) == "the backbone, Mean, gives no attention"
