from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Literal

import numpy
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn

from dino_lab.components.evaluators import knn as _neighbours
from dino_lab.components.evaluators.knn import Knn
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions

PRECISIONS: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")


class Vectors:
    """Images of one pixel whose channels are the features; neighbours are noisy."""

    def __init__(self, train: int = 300, test: int = 70, classes: int = 7, dim: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        centers = 30 * torch.randn(classes, dim, generator=generator)
        self.classes = classes
        self._bank = self._draw(train, centers, generator)
        self._test = self._draw(test, centers, generator)

    def _draw(self, count: int, centers: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(centers), (count,), generator=generator)
        noise = 30 * torch.randn(count, centers.shape[1], generator=generator)
        values = (128 + centers[labels] + noise).clamp(0, 255).to(torch.uint8)
        return values[:, :, None, None], labels

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(32) for part in self._bank), strict=True)

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(16) for part in self._test), strict=True)

    def features(self, split: str) -> tuple[list[list[float]], list[int]]:
        images, labels = getattr(self, f"_{split}")
        return encode(images).tolist(), labels.tolist()


class Pixel(nn.Module):
    """The channels of one pixel for features."""

    dim = 6

    def __init__(self, factor: float = 1) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0] * self.factor


def encoder(factor: float = 1) -> Encoder:
    return Encoder(Network(Pixel(factor), nn.Identity(), mean=(0.5,), std=(0.5,)), 1, nullcontext)


def encode(images: Tensor) -> Tensor:
    return images[:, :, 0, 0].float() / 127.5 - 1


def naive(data: Vectors, k: int, temperature: float, top: int = 1) -> float:
    """Section 4.1 and appendix F.1 of the paper, one test image at a time; who has no vote is not ranked."""
    bank, labels = data.features("bank")
    images, truth = data.features("test")
    hits = 0
    for x, right in zip(images, truth, strict=True):
        cosines = [
            sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y) for y in bank
        ]
        nearest = sorted(range(len(bank)), key=lambda i: -cosines[i])[:k]
        votes: defaultdict[int, float] = defaultdict(float)
        for i in nearest:
            votes[labels[i]] += math.exp(cosines[i] / temperature)
        hits += right in sorted(votes, key=lambda label: -votes[label])[:top]
    return hits / len(images)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_scores_are_those_of_a_loop(temperature: float) -> None:
    data = Vectors()
    scores = Knn(k=(1, 5, 20), temperature=temperature).forward(encoder(), data)
    assert list(scores) == ["1nn", "5nn", "20nn", "1nn_top5", "5nn_top5", "20nn_top5"]
    for k in (1, 5, 20):
        assert scores[f"{k}nn"] == pytest.approx(naive(data, k, temperature))
    assert 1 / 7 < scores["20nn"] < 1
    assert scores["20nn"] != scores["1nn"]


def test_top_5_is_that_of_a_loop() -> None:
    data = Vectors(classes=40)
    scores = Knn(k=(20,)).forward(encoder(), data)
    assert scores["20nn_top5"] == pytest.approx(naive(data, 20, 0.07, top=5))
    assert scores["20nn"] < scores["20nn_top5"] < 1


@pytest.mark.parametrize("classes", [6, 10, 40])
def test_every_k_counts_only_classes_that_were_voted_for(classes: int) -> None:
    """Regression: classes without a vote filled the top 5, so noise scored 0.5 at k = 1."""
    data = Vectors(train=60, test=40, classes=classes)
    ks = tuple(range(1, 61))
    scores = Knn(k=ks).forward(encoder(), data)
    for k in ks:
        assert scores[f"{k}nn"] == pytest.approx(naive(data, k, 0.07)), k
        assert scores[f"{k}nn_top5"] == pytest.approx(naive(data, k, 0.07, top=5)), k
    assert scores["1nn_top5"] == scores["1nn"]
    assert scores["2nn_top5"] < scores["60nn_top5"]


def test_a_vote_that_is_tiny_is_a_vote() -> None:
    """At this temperature all votes but the nearest's vanish in float32."""
    data = Vectors(train=60, test=40, classes=10)
    scores = Knn(k=(4,), temperature=2e-3).forward(encoder(), data)
    assert scores["4nn_top5"] == pytest.approx(naive(data, 4, 1.0, top=5))


def test_scores_are_those_of_scikit_learn() -> None:
    data = Vectors()
    model = KNeighborsClassifier(
        20, weights=lambda distance: numpy.exp((1 - distance) / 0.07), metric="cosine", algorithm="brute"
    )
    model.fit(*data.features("bank"))
    expected = model.score(*data.features("test"))
    assert Knn(k=(20,)).forward(encoder(), data)["20nn"] == pytest.approx(expected)


@pytest.mark.parametrize("offset", [0.0, 20.0])
@pytest.mark.parametrize(("bank", "queries", "dim", "k"), [(1, 1, 1, 1), (40, 3, 5, 40), (500, 90, 16, 7)])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_neighbours_are_those_of_a_loop_in_float64(
    precision: torch.dtype,
    bank: int,
    queries: int,
    dim: int,
    k: int,
    offset: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where several blocks are searched, and where features point almost the same way."""
    monkeypatch.setattr(_neighbours, "BLOCK", 64)
    monkeypatch.setattr(_neighbours, "BLOCK_BYTES", 64 * 4 * 7)
    generator = torch.Generator().manual_seed(dim)
    base, asked = (torch.randn(n, dim, generator=generator) + offset for n in (bank, queries))
    exact = (base / base.norm(dim=1, keepdim=True)).double()
    found = list(_neighbours.nearest(asked, base, k, precision))
    assert [row for at, _, _ in found for row in range(queries)[at]] == list(range(queries))
    cosines, indices = (torch.cat(column) for column in list(zip(*found, strict=True))[1:])
    for row in range(queries):
        query = (asked[row] / asked[row].norm()).double()
        expected = sorted(((query * one).sum().item() for one in exact), reverse=True)[:k]
        assert cosines[row].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
        assert (exact[indices[row]] @ query).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_search_in_bfloat16_gives_the_accuracy_of_float32() -> None:
    data = Vectors(train=2000, test=500)
    one, other = (Knn(k=(1, 20), precision=name).forward(encoder(), data) for name in PRECISIONS)
    assert one == other


def test_votes_are_weighted() -> None:
    data = Vectors()
    cold, warm = (Knn(k=(100,), temperature=t).forward(encoder(), data)["100nn"] for t in (0.01, 1e6))
    assert cold != warm


def test_a_small_temperature_is_the_nearest_neighbour() -> None:
    data = Vectors()
    score = Knn(k=(20,), temperature=1e-4).forward(encoder(), data)["20nn"]
    assert score == naive(data, 1, 1.0)


def test_several_k_are_the_same_as_one_by_one() -> None:
    data = Vectors()
    together = Knn(k=(10, 20)).forward(encoder(), data)
    assert together == {**Knn(k=(10,)).forward(encoder(), data), **Knn(k=(20,)).forward(encoder(), data)}


@pytest.mark.parametrize("rows", [0.5, 1, 3, 69, 70, 1000])
def test_scores_do_not_depend_on_how_many_images_are_looked_up_at_once(
    rows: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Vectors()
    monkeypatch.setattr(_neighbours, "BLOCK_BYTES", int(rows * 300 * 4))
    assert Knn(k=(5,)).forward(encoder(), data)["5nn"] == pytest.approx(naive(data, 5, 0.07))


@pytest.mark.parametrize(("classes", "top5"), [(2, False), (5, False), (6, True), (1200, True)])
def test_any_number_of_classes_and_few_test_images(classes: int, top5: bool) -> None:
    scores = Knn(k=(3,)).forward(encoder(), Vectors(train=50, test=2, classes=classes))
    assert ("3nn_top5" in scores) is top5
    assert all(0 <= score <= 1 for score in scores.values())


def test_a_test_image_of_the_bank_finds_itself() -> None:
    data = Vectors()
    data._test = data._bank
    assert Knn(k=(1,)).forward(encoder(), data)["1nn"] == 1.0


def test_more_neighbours_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="k = 60 is more than the 50 training images"):
        Knn(k=(10, 60)).forward(encoder(), Vectors(train=50))


def test_a_number_of_neighbours_is_named_once() -> None:
    """Regression: hits of a repeated k were counted twice, for accuracies above 1."""
    with pytest.raises(ValueError, match="k names a number twice: 10, 20, 10"):
        Knn(k=(10, 20, 10))


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        Knn().forward(encoder(math.nan), Vectors())


def test_protocol_names_every_constant() -> None:
    knn = Knn(k=(5, 7), temperature=0.2, options=EvaluatorOptions(of="student"))
    for part in (
        "knn/2:",
        "k=5,7",
        "T=0.2",
        "exp(cosine/T)",
        "student",
        "training split",
        "test split",
        "voted",
    ):
        assert part in knn.protocol
    assert "\n" not in knn.protocol
    assert "bfloat16" not in knn.protocol
    assert "bfloat16" in Knn(precision="bfloat16").protocol
    assert (Knn().k, Knn().every, Knn().of) == ((10, 20), 1, "teacher")
