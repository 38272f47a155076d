from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import combinations, permutations

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino_lab.components.evaluators import clusters as module
from dino_lab.components.evaluators.clusters import Clusters, contingency, k_means, matched_order, matching
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions


class Clouds:
    """Test images of one pixel whose channels are the features: classes overlap."""

    def __init__(self, test: int = 120, classes: int = 5, seen: int | None = None, noise: float = 25) -> None:
        generator = torch.Generator().manual_seed(3)
        self.classes = classes
        centers = 25 * torch.randn(classes, 6, generator=generator)
        self.labels = torch.arange(test) % (seen or classes)
        values = 128 + centers[self.labels] + noise * torch.randn(test, 6, generator=generator)
        self.images = values.clamp(0, 255).to(torch.uint8)[:, :, None, None]

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(32), self.labels.split(32), strict=True)


class Pixel(nn.Module):
    """The channels of one pixel for features."""

    dim = 6

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


def encoder() -> Encoder:
    return Encoder(Network(Pixel(), nn.Identity(), mean=(0.5,), std=(0.5,)), 1, nullcontext)


def naive_nmi(labels: list[int], found: list[int]) -> float:
    def entropy(values: list[object]) -> float:
        shares = [values.count(value) / len(values) for value in set(values)]
        return -sum(share * math.log(share) for share in shares)

    both = entropy(list(zip(labels, found, strict=True)))
    one, other = entropy([*labels]), entropy([*found])
    return (one + other - both) / ((one + other) / 2)


def naive_ari(labels: list[int], found: list[int]) -> float:
    """Hubert and Arabie by counting pairs of images."""
    pairs = [(labels[i] == labels[j], found[i] == found[j]) for i, j in combinations(range(len(labels)), 2)]
    both = sum(a and b for a, b in pairs)
    one, other = sum(a for a, _ in pairs), sum(b for _, b in pairs)
    chance = one * other / len(pairs)
    return (both - chance) / ((one + other) / 2 - chance)


def naive_accuracy(labels: list[int], found: list[int], classes: int, k: int) -> float:
    """Every matching is tried."""
    wide = max(classes, k)
    hits = [
        sum(names[c] == y for y, c in zip(labels, found, strict=True)) for names in permutations(range(wide))
    ]
    return max(hits) / len(labels)


@pytest.mark.parametrize(("classes", "k"), [(5, None), (5, 3), (4, 7), (3, 1)])
def test_scores_are_those_of_loops(classes: int, k: int | None) -> None:
    data = Clouds(classes=classes)
    scores = Clusters(k=k).forward(encoder(), data)
    found = k_means(encoder()(data.images), k or classes, 0).tolist()
    labels = data.labels.tolist()
    assert list(scores) == ["nmi", "ari", "accuracy"]
    assert scores["nmi"] == pytest.approx(naive_nmi(labels, found), rel=1e-6, abs=1e-12)
    assert scores["ari"] == pytest.approx(naive_ari(labels, found), rel=1e-6, abs=1e-12)
    assert scores["accuracy"] == pytest.approx(naive_accuracy(labels, found, classes, k or classes), rel=1e-6)
    assert scores["accuracy"] < 1
    assert scores == Clusters(k=k).forward(encoder(), data)


def test_classes_far_apart_are_found() -> None:
    scores = Clusters().forward(encoder(), Clouds(noise=1))
    assert scores == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1})


def test_features_are_normalised() -> None:
    """A cluster is a direction, whatever the lengths."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(20, 1)
    lengths = torch.logspace(-2, 2, 40)[:, None]
    found = k_means(directions * lengths, 2, 0)
    assert torch.equal(found == found[0], torch.arange(40) % 2 == 0)


def test_the_matching_leaves_out_what_has_no_partner() -> None:
    labels, found = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 0, 0, 0])
    counts = contingency(labels, found, 3, 2)
    assert counts.tolist() == [[1, 2], [2, 0], [1, 0]]
    assert matching(counts) == {0: 1, 1: 0}
    assert matched_order(counts) == [1, 0]
    assert matched_order(counts.T) == [1, 0, 2]


def test_a_class_without_test_images() -> None:
    data = Clouds(classes=6, seen=4)
    clusters = Clusters()
    assert 0 < clusters.forward(encoder(), data)["accuracy"] < 1
    assert clusters.files(encoder(), data)
    apart = Clouds(classes=6, seen=4, noise=1)
    assert Clusters().forward(encoder(), apart) == pytest.approx({"nmi": 1, "ari": 1, "accuracy": 1})


def test_features_that_drew_together_are_one_cluster() -> None:
    data = Clouds()
    data.images[:] = 77
    scores = Clusters().forward(encoder(), data)
    assert scores == pytest.approx({"nmi": 0, "ari": 0, "accuracy": 24 / 120}, abs=1e-9)


def test_more_clusters_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="k = 9 is more than the 8 test images"):
        Clusters(k=9).forward(encoder(), Clouds(test=8))


@pytest.mark.parametrize("classes", [5, 40])
def test_the_picture_is_of_the_clusters_that_were_scored(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(module, "k_means", lambda *given: counted.append(1) or k_means(*given))
    data, encode, clusters = Clouds(classes=classes), encoder(), Clusters()
    clusters.forward(encode, data)
    picture = Image.open(io.BytesIO(clusters.files(encode, data)["confusion.png"]))
    assert picture.format == "PNG"
    assert min(picture.size) > 300
    assert len(counted) == 1
    clusters.forward(encoder(), data)
    assert len(counted) == 2


def test_protocol_names_every_constant() -> None:
    for part in ("clusters/2", "k=7", "seed=3", "10 starts", "L2-normalised", "student", "matching"):
        assert part in Clusters(k=7, seed=3, options=EvaluatorOptions(of="student")).protocol
    assert "k=classes" in Clusters().protocol
    assert "\n" not in Clusters().protocol
