from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.evaluators._probing import (
    accuracies,
    inputs,
    only_seen,
    standardisation,
    validation_part,
)
from dino_lab.components.evaluators.linear_probe import RATES, LinearProbe, train_heads
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import Split
from dino_lab.network import Network


class Clouds:
    """Images of one pixel whose channels are the features: classes overlap."""

    def __init__(
        self, train: int = 400, test: int = 200, classes: int = 8, seen: int | None = None, side: int = 1
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        self.classes, self.dim = classes, 6
        centers = 25 * torch.randn(classes, 6, generator=generator)
        self.splits = {}
        for name, count in (("bank", train), ("test", test)):
            labels = torch.randint(seen or classes, (count,), generator=generator)
            values = 128 + centers[labels] + 25 * torch.randn(count, 6, generator=generator)
            images = values.clamp(0, 255).to(torch.uint8)[:, :, None, None].repeat(1, 1, side, side)
            self.splits[name] = images, labels

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(64) for part in self.splits["bank"]), strict=True)

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(64) for part in self.splits["test"]), strict=True)


class Pixel(nn.Module):
    """The channels of one pixel for features; the last is the same for all."""

    dim = 7

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, 0, 0], (0, 1), value=0.3)


def encoder() -> Encoder:
    return Encoder(Network(Pixel(), nn.Identity(), mean=(0.5,), std=(0.5,)), 1, nullcontext)


@pytest.mark.parametrize(
    ("images", "D", "classes", "batch"), [(37, 5, 3, 8), (64, 9, 7, 16), (20, 4, 2, 100)]
)
def test_all_rates_at_once_are_torch_sgd_one_by_one(images: int, D: int, classes: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(images, D, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (images,), generator=generator)
    rates = (0.001, 0.1, 2.0)
    weights, biases = train_heads(x, y, classes, rates, 5, batch, 11)
    for rate, weight, bias in zip(rates, weights, biases, strict=True):
        expected = torch_sgd(x, y, classes, rate, 5, min(batch, images))
        torch.testing.assert_close(weight, expected.weight.detach().T, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(bias, expected.bias.detach(), rtol=1e-6, atol=1e-12)


def torch_sgd(x: Tensor, y: Tensor, classes: int, rate: float, epochs: int, batch: int) -> nn.Linear:
    """The same with autograd, torch's optimizer and its schedule."""
    head = nn.Linear(x.shape[1], classes, dtype=torch.float64)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        start = torch.randn(x.shape[1], 1, classes, generator=generator, dtype=torch.float64)
        head.weight.copy_(0.01 * start[:, 0].T)
        head.bias.zero_()
    optimizer = torch.optim.SGD(head.parameters(), lr=rate * batch / 256, momentum=0.9)
    steps = epochs * -(-len(x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            optimizer.zero_grad()
            F.cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return head


def test_initial_weights_have_the_std_of_the_paper() -> None:
    x, y = torch.zeros(2, 300), torch.tensor([0, 1])
    weights, biases = train_heads(x, y, 20, (1e-9, 1.0), 1, 2, 0)
    assert weights.std().item() == pytest.approx(0.01, rel=0.03)
    assert torch.equal(weights[0], weights[1])
    assert biases.abs().max() < 1


@pytest.mark.parametrize("classes", [6, 11])
def test_accuracies_are_those_of_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(90, classes, generator=generator), torch.arange(90) % classes
    found = accuracies(scores, labels)
    for k in (1, 5):
        expected = top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
        assert found[f"top{k}"] == pytest.approx(expected, rel=1e-6)


def test_accuracies_among_the_classes_that_were_seen() -> None:
    """Of scores [8, 7], with classes 1, 2 and 4 seen: one image at a time."""
    scores, labels = torch.randn(8, 7, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 7
    found = accuracies(only_seen(scores, torch.tensor([4, 1, 2, 2])), labels)
    first = [max((1, 2, 4), key=row.__getitem__) for row in scores.tolist()]
    assert found["top1"] == sum(a == b for a, b in zip(first, labels.tolist(), strict=True)) / 8
    assert found["top5"] == 3 / 8  # the images with labels 1, 2 and 4


def test_standardisation_is_that_of_scikit_learn() -> None:
    x = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.01, 0.0]) + torch.tensor([0.0, 7.0, -3.0, 0.3])
    mean, std = standardisation(x)
    scaler = StandardScaler().fit(x.double().numpy())
    numpy.testing.assert_allclose(mean, scaler.mean_, rtol=1e-6, atol=1e-8)
    numpy.testing.assert_allclose(std[:3], scaler.scale_[:3], rtol=1e-6)
    assert std[3] == 1


def test_the_validation_part_has_its_share_of_each_class() -> None:
    labels = torch.tensor([0] * 40 + [1] * 20 + [2] * 3 + [5])
    part = validation_part(labels, 0.1, 0)
    assert [int((part & (labels == c)).sum()) for c in (0, 1, 2, 5)] == [4, 2, 1, 0]
    assert torch.equal(part, validation_part(labels, 0.1, 0))
    assert not torch.equal(part, validation_part(labels, 0.1, 1))
    assert [int((validation_part(labels, 0.99, 0) & (labels == c)).sum()) for c in (0, 1, 2, 5)] == [
        39,
        19,
        2,
        0,
    ]


def test_accuracy_is_near_that_of_logistic_regression() -> None:
    data = Clouds()
    scores = LinearProbe().forward(encoder(), data)
    (x, y), (x2, y2) = data.splits["bank"], data.splits["test"]
    expected = LogisticRegression(max_iter=1000).fit(x.flatten(1) / 255, y).score(x2.flatten(1) / 255, y2)
    assert list(scores) == ["top1", "top5", "rate", "validation_top1"]
    assert scores["top1"] == pytest.approx(expected, abs=0.03)
    assert 0.5 < scores["top1"] < scores["top5"] < 1
    assert scores["rate"] in RATES
    assert scores == LinearProbe().forward(encoder(), data)


def test_the_rate_is_chosen_on_the_validation_part_and_the_test_split_has_no_say() -> None:
    data = Clouds()
    honest = LinearProbe(epochs=3).forward(encoder(), data)
    images, labels = data.splits["test"]
    data.splits["test"] = images, (labels + 1) % data.classes
    lied = LinearProbe(epochs=3).forward(encoder(), data)
    assert (honest["rate"], honest["validation_top1"]) == (lied["rate"], lied["validation_top1"])
    assert lied["top1"] < 0.3 < honest["top1"]
    alone = {
        rate: LinearProbe(rates=(rate,), epochs=3).forward(encoder(), Clouds())["validation_top1"]
        for rate in RATES
    }
    assert honest["rate"] == max(alone, key=alone.__getitem__)
    assert len(set(alone.values())) > 3


@pytest.mark.parametrize(("classes", "seen"), [(2, 2), (5, 5), (9, 4), (30, 30)])
def test_any_number_of_classes_and_classes_without_images(classes: int, seen: int) -> None:
    scores = LinearProbe(epochs=2).forward(encoder(), Clouds(train=90, test=5, classes=classes, seen=seen))
    assert ("top5" in scores) is (classes > 5)
    assert all(0 <= score <= 1 for score in scores.values())


@pytest.mark.parametrize("seen", [6, 4, 2])
def test_a_class_without_training_images_is_never_guessed(seen: int) -> None:
    data = Clouds(train=90, test=40, classes=8, seen=seen)
    images, labels = data.splits["test"]
    for absent in range(seen, 8):
        data.splits["test"] = images, torch.full_like(labels, absent)
        scores = LinearProbe(epochs=1, rates=(1e-5,)).forward(encoder(), data)
        assert (scores["top1"], scores["top5"]) == (0, 0)
    data.splits["test"] = images, labels
    top5 = LinearProbe(epochs=1).forward(encoder(), data)["top5"]
    assert top5 == 1 if seen < 6 else top5 < 1


def test_classes_of_one_image_each_leave_nothing_to_choose_by() -> None:
    data = Clouds(train=4)
    data.splits["bank"] = data.splits["bank"][0], torch.arange(4)
    with pytest.raises(UserError, match="no class has two training images"):
        LinearProbe().forward(encoder(), data)


def test_inputs_are_blocks_and_mean_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(3, 4, 5, generator=generator)
    tokens = torch.randn(3, 5, generator=generator)
    split = Split(torch.arange(3), {"features": blocks[:, 0], "blocks": blocks, "mean_tokens": tokens})
    assert torch.equal(inputs(split, 1, False), blocks[:, 0])
    assert torch.equal(inputs(split, 2, True), torch.cat([blocks[:, 0], blocks[:, 1], tokens], 1))
    short = Split(split.labels, {"features": blocks[:, 0], "blocks": blocks[:, :2]})
    with pytest.raises(UserError, match="blocks = 3 is more than the 2 that the backbone gives"):
        inputs(short, 3, False)


def test_blocks_and_tokens_of_a_vit() -> None:
    probe = LinearProbe(blocks=3, mean_tokens=True, epochs=2)
    assert probe.wants == ("blocks", "mean_tokens")
    assert LinearProbe().wants == ()
    backbone = Vit(6, 16, width=8, depth=4, heads=2, patch=4, init_std=0.5).eval()
    network = Network(backbone, nn.Identity())
    data = Clouds(train=60, test=20, side=16)
    scores = probe.forward(Encoder(network, 16, nullcontext, frozenset({"features", *probe.wants})), data)
    assert 0 <= scores["top1"] <= 1
    for part in (
        "CLS of the last 3 blocks and mean token",
        "standardised",
        "2 epochs",
        "0.1 of the training",
    ):
        assert part in probe.protocol
    assert "\n" not in probe.protocol
