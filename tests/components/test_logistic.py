from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dino_lab.components.evaluators._probing import validation_part
from dino_lab.components.evaluators.logistic import Logistic
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions


class Clouds:
    """Images of one pixel whose channels are the features: classes overlap."""

    def __init__(self, train: int = 300, test: int = 150, classes: int = 8, seen: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.classes = classes
        centers = 25 * torch.randn(classes, 6, generator=generator)
        self.splits = {}
        for name, count in (("bank", train), ("test", test)):
            labels = torch.randint(seen or classes, (count,), generator=generator)
            values = 128 + centers[labels] + 25 * torch.randn(count, 6, generator=generator)
            self.splits[name] = values.clamp(0, 255).to(torch.uint8)[:, :, None, None], labels

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.splits["bank"]

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.splits["test"]


class Pixel(nn.Module):
    """The channels of one pixel for features."""

    dim = 6

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 0, 0]


def encoder() -> Encoder:
    return Encoder(Network(Pixel(), nn.Identity(), mean=(0.5,), std=(0.5,)), 1, nullcontext)


def test_scores_are_those_of_a_pipeline_of_scikit_learn() -> None:
    data, penalties = Clouds(), (1e-5, 1e-3, 0.1, 10.0)
    scores = Logistic(inverse_penalties=penalties).forward(encoder(), data)
    (x, y), (x2, y2) = ((encoder()(images).numpy(), labels) for images, labels in data.splits.values())
    held_out = validation_part(y, 0.1, 0).numpy()
    models = [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in penalties]
    checked = [model.fit(x[~held_out], y[~held_out]).score(x[held_out], y[held_out]) for model in models]
    best = max(range(4), key=checked.__getitem__)
    assert len(set(checked)) > 1
    assert scores["inverse_penalty"] == penalties[best]
    assert scores["validation_top1"] == pytest.approx(checked[best], rel=1e-6)
    assert scores["top1"] == pytest.approx(models[best].score(x2, y2), rel=1e-6)
    expected = top_k_accuracy_score(y2, models[best].predict_proba(x2), k=5)
    assert scores["top5"] == pytest.approx(expected, rel=1e-6)
    assert scores == Logistic(inverse_penalties=penalties).forward(encoder(), data)


@pytest.mark.parametrize(("classes", "seen"), [(2, 2), (5, 5), (9, 4)])
def test_any_number_of_classes_and_classes_without_images(classes: int, seen: int) -> None:
    scores = Logistic().forward(encoder(), Clouds(train=90, test=5, classes=classes, seen=seen))
    assert ("top5" in scores) is (classes > 5)
    assert all(0 <= score <= 1 for score in scores.values())


@pytest.mark.parametrize("seen", [6, 4, 2])
def test_a_class_without_training_images_is_never_guessed(seen: int) -> None:
    """Regression: with fewer than five classes seen, those not seen filled the top 5."""
    data = Clouds(classes=8, seen=seen)
    images, labels = data.splits["test"]
    for absent in range(seen, 8):
        data.splits["test"] = images, torch.full_like(labels, absent)
        scores = Logistic().forward(encoder(), data)
        assert (scores["top1"], scores["top5"]) == (0, 0)


def test_labels_that_the_test_split_lacks_change_nothing() -> None:
    """With four classes seen, the top 5 are those four: right wherever the label is one of them."""
    data = Clouds(classes=8, seen=4)
    images, labels = data.splits["test"]
    data.splits["test"] = images[labels < 2], labels[labels < 2]
    assert Logistic().forward(encoder(), data)["top5"] == 1


def test_one_class_is_refused() -> None:
    with pytest.raises(UserError, match="all training images are of one class"):
        Logistic().forward(encoder(), Clouds(classes=3, seen=1))


def test_protocol_names_every_constant() -> None:
    protocol = Logistic(iterations=70, seed=4, options=EvaluatorOptions(of="student")).protocol
    for part in (
        "logistic/2",
        "C=0.0001,0.001",
        "70 iterations",
        "0.1 of",
        "seed=4",
        "student",
        "standardised",
    ):
        assert part in protocol
    assert "\n" not in protocol
