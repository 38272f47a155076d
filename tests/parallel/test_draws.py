"""Random numbers of layers are those of the whole batch, whatever part of it a network sees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropPath, PatchDropout
from torch import Tensor, nn

from dino_lab.training.draws import WholeBatchDraws

V, B = 3, 7
Layer = Callable[[Tensor], Tensor]
attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
MAPS: dict[str, Layer] = {
    "dropout": nn.Dropout(0.4),
    "dropout of channels": nn.Dropout2d(0.5),
    "alpha dropout": nn.AlphaDropout(0.3),
    "stochastic depth": DropPath(0.3),
    "noise": lambda x: x + torch.randn_like(x),
    "noise of an image": lambda x: x + torch.rand(len(x), 1, 1, 1),
    "noise in place": lambda x: x + torch.empty_like(x).exponential_(),
    "a probability each": lambda x: torch.bernoulli(x.sigmoid()),
    "integers": lambda x: x * torch.randint(0, 4, (len(x), 5, 1, 1)),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "windows of an image": lambda x: DropPath(0.5)(x.reshape(len(x) * 5, 1, *x.shape[2:])).reshape(x.shape),
    "the same for all images": lambda x: x * torch.rand(5, 1, 1),
}
TOKENS: dict[str, Layer] = {
    "patches": PatchDropout(0.5, num_prefix_tokens=1, ordered=True),
    "attention": lambda x: attention(x, x, x)[0],
    "attention in one function": lambda x: F.scaled_dot_product_attention(*[x[:, None]] * 3, dropout_p=0.5)[
        :, 0
    ],
    "choices": lambda x: x.gather(
        1, torch.multinomial(x[..., 0].softmax(-1), 2)[..., None].expand(-1, -1, 8)
    ),
}


def check(layer: Layer, x: Tensor, images: slice, memory_format: torch.memory_format) -> None:
    x = x.contiguous(memory_format=memory_format)
    torch.manual_seed(3)
    whole, after = layer(x), torch.get_rng_state()
    some = x.unflatten(0, (V, B))[:, images].flatten(0, 1).contiguous(memory_format=memory_format)
    torch.manual_seed(3)
    with WholeBatchDraws(B, images).of(V):
        found = layer(some)
    assert torch.equal(found, whole.unflatten(0, (V, B))[:, images].flatten(0, 1))
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(4)
    assert not torch.equal(layer(x), whole), "nothing is drawn"


@pytest.mark.parametrize("images", [slice(0, 3), slice(3, 7), slice(5, 6)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layer", MAPS.values(), ids=MAPS.keys())
def test_of_maps(layer: Layer, memory_format: torch.memory_format, images: slice) -> None:
    check(layer, torch.randn(V * B, 5, 6, 4), images, memory_format)


@pytest.mark.parametrize("images", [slice(0, 3), slice(3, 7)], ids=str)
@pytest.mark.parametrize("layer", TOKENS.values(), ids=TOKENS.keys())
def test_of_tokens(layer: Layer, images: slice) -> None:
    check(layer, torch.randn(V * B, 9, 8), images, torch.contiguous_format)


def test_the_gradient_is_that_of_the_same_draws() -> None:
    x, layer = torch.randn(V * B, 5, requires_grad=True), nn.Dropout(0.5)
    torch.manual_seed(3)
    layer(x).square().sum().backward()
    some = x.detach().unflatten(0, (V, B))[:, 2:5].flatten(0, 1).requires_grad_()
    torch.manual_seed(3)
    with WholeBatchDraws(B, slice(2, 5)).of(V):
        y = layer(some)
    y.square().sum().backward()
    assert x.grad is not None
    assert torch.equal(some.grad, x.grad.unflatten(0, (V, B))[:, 2:5].flatten(0, 1))


def test_draws_that_depend_on_values_are_refused() -> None:
    with WholeBatchDraws(B, slice(0, 3)).of(V), pytest.raises(RuntimeError, match="cannot be divided"):
        nn.RReLU()(torch.randn(V * 3, 5))
