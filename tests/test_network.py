"""What a network does to images before its backbone sees them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dino_lab.network import Network

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 3, 5, 7), (2, 4, 3, 8, 8)])
@pytest.mark.parametrize("autocast", [False, True])
def test_each_channel_is_normalised_by_its_own(shape: tuple[int, ...], autocast: bool) -> None:
    network = Network(nn.Identity(), nn.Identity(), mean=MEAN, std=STD)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = images.detach().clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        normalised = network.normalize(images)
    expected = [
        (channel.double() - mean) / std
        for channel, mean, std in zip(before.unbind(-3), MEAN, STD, strict=True)
    ]
    torch.testing.assert_close(normalised.double(), torch.stack(expected, -3), rtol=0, atol=1e-6)
    assert normalised.dtype == torch.float32
    assert torch.equal(images, before)  # student and teacher are given the same crops
    normalised.sum().backward()
    gradient = (1 / torch.tensor(STD).view(3, 1, 1)).expand(shape)
    torch.testing.assert_close(images.grad, gradient)


def test_without_a_mean_images_stay() -> None:
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(Network(nn.Identity(), nn.Identity()).normalize(images), images)


class Joins(nn.Module):
    """Means of images as features, and how often they were asked for at once."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[torch.Size]] = []

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def features_of_sizes(self, images: list[Tensor]) -> Tensor:
        self.calls.append([group.shape for group in images])
        return torch.cat([self(group) for group in images])


@pytest.mark.parametrize(("device", "calls"), [("meta", 1), ("cpu", 0)])
def test_crops_of_several_sizes_are_one_call_where_launches_take_time(device: str, calls: int) -> None:
    backbone = Joins()
    network = Network(backbone, nn.Identity()).to(device)
    crops = [torch.rand(2, 5, 3, 8, 8, device=device), torch.rand(4, 5, 3, 4, 4, device=device)]
    features = network(crops).features
    assert features.shape == (6, 5, 3)
    assert backbone.calls == [[(10, 3, 8, 8), (20, 3, 4, 4)]] * calls
    network(crops[:1])
    assert len(backbone.calls) == calls
