from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dino_lab import collectives
from dino_lab.components.evaluators._probing import labelled_part
from dino_lab.components.evaluators.fine_tune import FineTune, _chosen_images, _classifier
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.floors import pixel_encoder
from dino_lab.kernels.batch_norm import synchronise_batch_norm
from dino_lab.network import Network, evaluation_mode
from dino_lab.registry import EvaluatorOptions


class Bars:
    """Noise of 8 x 8 pixels with a bright row, whose height is the class; left and right are alike."""

    channels, size = 1, 8

    def __init__(self, train: int = 40, test: int = 30, classes: int = 3, seen: int = 3) -> None:
        generator = torch.Generator().manual_seed(0)
        self.classes, self.train_images, self.test_images = classes, train, test
        self.splits = {}
        for name, count in (("bank", train), ("test", test)):
            kinds = torch.arange(count) % seen
            images = torch.randint(0, 160, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
            images[torch.arange(count), 0, 2 * kinds + 1] = 250
            images[..., 4:] = images[..., :4].flip(-1)
            self.splits[name] = images, kinds

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(16) for part in self.splits["bank"]), strict=True)

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(16) for part in self.splits["test"]), strict=True)


class Linear(nn.Module):
    """Pixels to five features."""

    dim = 5

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.flatten(1))


class Mixed(nn.Module):
    """Batch norm, which counts what it sees, and dropout, which draws."""

    dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def network(make: type[nn.Module]) -> Network:
    torch.manual_seed(0)
    return Network(make(), nn.Identity(), mean=(0.4,), std=(0.3,))


def encoder(of: Network) -> Encoder:
    return Encoder(of, 8, nullcontext)


def test_training_is_nesterov_descent_on_the_cross_entropy() -> None:
    """Of a linear backbone and all images at once, by gradients written out in float64."""
    (images, labels), epochs, rate, batch = Bars().splits["bank"], 6, 0.5, 40
    model = _classifier(network(Linear), 3, torch.Generator().manual_seed(1))
    layers = model.backbone[0].linear, model.backbone[1]  # type: ignore[index, union-attr]
    weights = [part.detach().double().numpy() for layer in layers for part in (layer.weight, layer.bias)]
    weights = [weight.copy() for weight in weights]
    x = (images.flatten(1).double().numpy() / 255 - 0.4) / 0.3
    velocity = [np.zeros_like(weight) for weight in weights]
    for step in range(epochs):
        w1, b1, w2, b2 = weights
        features = x @ w1.T + b1
        logits = features @ w2.T + b2
        slope = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        slope = (slope - np.eye(3)[labels.numpy()]) / len(x)
        back = slope @ w2
        gradients = [back.T @ x, back.sum(0), slope.T @ features, slope.sum(0)]
        now = rate * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / epochs))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weights = [w - now * (g + 0.9 * v) for w, g, v in zip(weights, gradients, velocity, strict=True)]
    # Crops of the whole area are the image, and mirrored images are the same.
    evaluator = FineTune(epochs=epochs, rate=rate, scale=(1.0, 1.0))
    before = layers[1].weight.detach().clone()
    evaluator._train(model, images, labels, 8, torch.Generator().manual_seed(2))
    assert (layers[1].weight - before).abs().max() > 0.1
    found = [part.detach().numpy() for layer in layers for part in (layer.weight, layer.bias)]
    for one, other in zip(found, weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_network_stays_as_it_is_and_the_score_is_fixed() -> None:
    data, its = Bars(), network(Mixed)
    its.backbone.requires_grad_(False)  # as those of a teacher
    before, modes = copy.deepcopy(its.state_dict()), [module.training for module in its.modules()]
    evaluator, state = FineTune(share=0.5, epochs=4, batch_size=8), torch.get_rng_state()
    with torch.no_grad(), evaluation_mode(its):
        first = evaluator.forward(encoder(its), data)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(3)
        assert evaluator.forward(encoder(its), data) == first
    assert its.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in its.state_dict().items())
    assert [module.training for module in its.modules()] == modes
    assert not any(weight.requires_grad or weight.grad is not None for weight in its.parameters())


def test_training_teaches_the_whole_network() -> None:
    data, its = Bars(train=90), network(Mixed)
    found = FineTune(share=1.0, epochs=40, rate=0.5, batch_size=32, scale=(0.9, 1.0)).forward(
        encoder(its), data
    )
    assert found.keys() == {"top1"}
    assert found["top1"] > 0.8  # of three classes


def test_only_labelled_images_are_trained_on() -> None:
    data = Bars()
    images, labels = data.splits["bank"]
    chosen = labelled_part(labels, 0.3, torch.Generator().manual_seed(7))
    evaluator = FineTune(share=0.3, epochs=2, seed=7)
    found = evaluator.forward(encoder(network(Linear)), data)
    assert torch.equal(_chosen_images(data, chosen), images[chosen])
    images[~chosen] = 0
    assert evaluator.forward(encoder(network(Linear)), data) == found


def test_other_processes_which_do_not_evaluate_are_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, its = Bars(), network(Mixed)
    evaluator = FineTune(share=0.5, epochs=2, batch_size=8)
    with evaluation_mode(its):
        alone = evaluator.forward(encoder(its), data)
        monkeypatch.setattr(collectives, "processes", lambda: 2)
        monkeypatch.setattr(collectives, "stack", lambda x: pytest.fail("asked every process"))
        synchronise_batch_norm(its)
        assert evaluator.forward(encoder(its), data) == alone


def test_a_class_without_images_is_never_guessed() -> None:
    data = Bars(classes=9, seen=3)
    images, labels = data.splits["test"]
    data.splits["test"] = images, torch.full_like(labels, 8)
    found = FineTune(share=1.0, epochs=1).forward(encoder(network(Linear)), data)
    assert found == {"top1": 0, "top5": 0}


def test_the_floor_is_chance() -> None:
    data = Bars()
    assert FineTune().floors(pixel_encoder(data), data) == {"top1": {"chance": pytest.approx(1 / 3)}}


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="all training images are of one class"):
        FineTune().forward(encoder(network(Linear)), Bars(seen=1))
    with pytest.raises(UserError, match="with rate 100 diverged; take a smaller"):
        FineTune(share=1.0, rate=100, epochs=60).forward(encoder(network(Linear)), Bars())


def test_protocol_names_every_constant() -> None:
    options = EvaluatorOptions(of="student")
    protocol = FineTune(share=0.02, epochs=7, rate=0.3, batch_size=9, seed=4, options=options).protocol
    for part in (
        "fine_tune/1",
        "0.02 of",
        "7 epochs",
        "of 9 ",
        "0.3 times",
        "seed=4",
        "student",
        "0.08 to 1 ",
    ):
        assert part in protocol
    assert "\n" not in protocol
