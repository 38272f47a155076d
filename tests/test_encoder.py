"""What evaluators are given to ask."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.data.shapes import Shapes
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import LACKS, REPRESENTATIONS
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


class Rows:
    """Images of a split, 5 at a time."""

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(images(4).repeat(6, 1, 1, 1).split(5), torch.arange(12).split(5), strict=True)


def test_a_split_goes_through_the_network_once() -> None:
    asked = encoder()
    seen: list[int] = []
    asked.network.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    for _ in range(2):
        bank = asked.split(Rows(), "bank")
    assert seen == [5, 5, 2]
    torch.testing.assert_close(bank.features, asked(images(4)).repeat(6, 1))
    assert bank.labels.tolist() == list(range(12))


def test_a_representation_that_the_backbone_does_not_give_is_one_line() -> None:
    asked = replace(encoder(), wants=frozenset({"features", "blocks"}))
    with pytest.raises(UserError, match="the backbone, Mean, gives no blocks: it has no CLS token in each"):
        asked.split(Rows(), "bank")
    assert {"features", *LACKS} == set(REPRESENTATIONS)


def test_representations_are_those_of_the_backbones_outputs() -> None:
    torch.manual_seed(0)
    backbone = Vit(3, 16, width=8, depth=5, heads=2, patch=4, init_std=0.5).eval()
    asked = Encoder(Network(backbone, nn.Identity()), 16, nullcontext, frozenset(REPRESENTATIONS))
    few = images(16)
    split = asked.split(SimpleNamespace(test=lambda _: [(few, torch.zeros(2))]), "test")
    tokens = backbone.tokens(few / 255).detach()
    torch.testing.assert_close(split.features, asked(few))
    torch.testing.assert_close(split["blocks"][:, 0], asked(few))
    torch.testing.assert_close(split["mean_tokens"], tokens.mean((2, 3)))
    powers = [max(value, 1e-6) ** 4 for value in tokens[1, 3].double().flatten().tolist()]
    assert split["gem_tokens"][1, 3].item() == pytest.approx((sum(powers) / 16) ** 0.25)
    assert split["blocks"].shape == (2, 4, 8)
    cut = copy.deepcopy(backbone)
    cut.model.blocks = cut.model.blocks[:-2]
    torch.testing.assert_close(split["blocks"][:, 2], cut(few / 255))


def test_annotated_images_come_with_tokens_and_attention_of_one_forward() -> None:
    torch.manual_seed(0)
    backbone = Vit(3, 32, width=8, depth=2, heads=2, patch=8).eval()
    asked = Encoder(Network(backbone, nn.Identity()), 32, nullcontext)
    data = Shapes(torch.device("cpu"), train_images=10, test_images=10)
    seen: list[int] = []
    backbone.model.register_forward_hook(lambda *_: seen.append(1))
    backbone.model.patch_embed.register_forward_hook(lambda *_: seen.append(2))
    found = asked.annotated(data, 6)
    assert asked.annotated(data, 6) is found
    assert seen == [2]
    pictures = data.annotated("test", torch.arange(6))
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            pictures, (found.images, found.labels, found.masks, found.parts, found.boxes), strict=True
        )
    )
    assert found.output.tokens is not None
    assert found.output.attention is not None
    torch.testing.assert_close(found.output.tokens, asked.ask("tokens", pictures[0]))
    torch.testing.assert_close(found.output.attention, asked.ask("attention", pictures[0]))
    with pytest.raises(UserError, match="images = 11 is more than the 10 test images; null takes all"):
        asked.annotated(data, 11)


def test_annotated_images_that_were_looked_at_are_not_looked_at_again() -> None:
    asked, data = encoder(16), Shapes(torch.device("cpu"), size=16, train_images=10, test_images=10)
    seen: list[int] = []
    asked.network.backbone.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    few, all_, fewer = (asked.annotated(data, count) for count in (3, None, 2))
    assert seen == [3, 7]
    whole = encoder(16).annotated(data, 10)
    for found in (few, all_, fewer):
        count = len(found.labels)
        assert torch.equal(found.images, whole.images[:count])
        assert torch.equal(found.classes, whole.classes[:count])
        torch.testing.assert_close(found.output.features, whole.output.features[:count])
    # One object of the image's label, and what a backbone without `outputs` has.
    assert torch.equal(whole.objects, whole.masks.to(torch.uint8))
    assert torch.equal(whole.classes, whole.masks * (whole.labels + 1)[:, None, None].to(torch.uint8))
    assert whole.output.tokens is not None
    assert whole.output.attention is None


def test_images_may_be_shown_at_another_size() -> None:
    torch.manual_seed(0)
    backbone = Vit(3, 16, width=8, depth=1, heads=2, patch=4).eval()
    asked = Encoder(Network(backbone, nn.Identity()), 16, nullcontext)
    assert asked.at(None, 3) is asked.at(16, 3) is asked
    larger = asked.at(24, 3)
    assert asked.at(24, 3) is larger
    assert larger.ask("tokens", images(16)).shape == (2, 8, 6, 6)
    with pytest.raises(UserError, match="pixels = 18: the backbone, Vit, refuses them: "):
        asked.at(18, 3)


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


class Sizes(Mean):
    """It notes the sizes that it sees, and knows no width of 5."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape[-2:]))
        if images.shape[-1] == 5:
            raise RuntimeError("five\nis too many")
        return super().forward(images)


def test_images_are_seen_at_another_size_or_as_they_are() -> None:
    backbone = Sizes()
    encode = Encoder(Network(backbone, nn.Identity()), 4, nullcontext)
    encode.at(8, 3)(images(3))
    encode.unresized()(images(9)[:, :, :6])
    encode(images(3))
    assert backbone.seen == [(8, 8), (8, 8), (6, 9), (4, 4)]  # the first to try


def test_a_size_that_the_network_refuses_is_one_line() -> None:
    encode = Encoder(Network(Sizes(), nn.Identity()), 4, nullcontext)
    with pytest.raises(UserError, match=r"pixels = 5: the backbone, Sizes, refuses them: five$"):
        encode.at(5, 3)
    with pytest.raises(UserError, match=r"cannot see images of 5 x 5 px: five$"):
        encode.unresized()(images(5))


def test_what_is_kept_of_one_size_is_not_that_of_another() -> None:
    encode = encoder()
    calls = []
    for eye in (encode, encode, encode.at(8, 3), encode.unresized()):
        eye.once("key", lambda: calls.append(1))
    assert len(calls) == 3
