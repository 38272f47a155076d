from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dino_lab.components.evaluators._logistic import fit
from dino_lab.components.evaluators._probing import labelled_part
from dino_lab.components.evaluators.low_shot import LowShot
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.floors import pixel_encoder
from dino_lab.network import Network


class Pixels:
    """Images of one pixel and six channels around a colour for each class; classes overlap."""

    channels, size = 6, 1

    def __init__(self, labels: list[int], classes: int = 7, test: int = 80) -> None:
        generator = torch.Generator().manual_seed(3)
        self.classes, self.train_images, self.test_images = classes, len(labels), test
        colours = 20 * torch.randn(classes, 6, generator=generator)
        self.splits = {}
        for name, kinds in (("bank", torch.tensor(labels)), ("test", torch.arange(test) % classes)):
            values = 128 + colours[kinds] + 20 * torch.randn(len(kinds), 6, generator=generator)
            self.splits[name] = values.clamp(0, 255).to(torch.uint8)[:, :, None, None], kinds

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.splits["bank"]

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield self.splits["test"]


LABELS = [i % 7 for i in range(140)]


def encoder() -> Encoder:
    return Encoder(Network(nn.Flatten(), nn.Identity()), 1, nullcontext)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_every_class_keeps_its_share_of_labels_and_at_least_one(share: float) -> None:
    labels = torch.tensor([0] * 200 + [1] * 30 + [3] * 4)[torch.randperm(234)]
    part = labelled_part(labels, share, torch.Generator().manual_seed(1))
    kept = labels[part].bincount(minlength=4).tolist()
    assert (
        kept
        == {
            0.01: [2, 1, 0, 1],
            0.1: [20, 3, 0, 1],
            0.5: [100, 15, 0, 2],
            1.0: [200, 30, 0, 4],
        }[share]
    )


def test_draws_differ_and_are_fixed_by_the_seed() -> None:
    labels = torch.tensor(LABELS)
    first, second = (
        [labelled_part(labels, 0.2, generator).tolist() for _ in range(3)]
        for generator in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    )
    assert first == second
    assert first[0] != first[1] != first[2]


def test_the_penalty_is_a_tenth_over_the_images() -> None:
    """The weights are where the mean cross-entropy and (0.1 / n) / 2 times their square have no slope."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(40, 5)).astype(np.float32), np.arange(40) % 4
    weights = fit(torch.from_numpy(x), torch.from_numpy(y), 10.0, 1000, intercept=False).coef_  # [4, 5]

    def objective(flat: np.ndarray) -> float:
        logits = x @ flat.reshape(4, 5).T
        likelihood = logits[np.arange(40), y] - np.log(np.exp(logits).sum(1))
        return float(-likelihood.mean() + 0.1 / 40 / 2 * (flat**2).sum())

    at, step = weights.astype(np.float64).ravel(), 1e-4
    slope = [(objective(at + move) - objective(at - move)) / (2 * step) for move in step * np.eye(20)]
    assert np.abs(slope).max() < 2e-4
    assert np.abs(at).max() > 0.1


def test_scores_are_means_of_a_pipeline_of_scikit_learn() -> None:
    data = Pixels(LABELS)
    found = LowShot(shares=(0.05, 0.3), draws=4, seed=2).forward(encoder(), data)
    (x, y), (x2, y2) = (
        (images.flatten(1).numpy() / np.float32(255), kinds.numpy()) for images, kinds in data.splits.values()
    )
    scaler = StandardScaler().fit(x)  # of all images: none of their labels is needed
    for name, share in (("5pct", 0.05), ("30pct", 0.3)):
        generator, top1 = torch.Generator().manual_seed(2), []
        for _ in range(4):
            part = labelled_part(torch.tensor(y), share, generator).numpy()
            model = LogisticRegression(C=10, fit_intercept=False, max_iter=1000)
            top1.append(model.fit(scaler.transform(x[part]), y[part]).score(scaler.transform(x2), y2))
        assert len(set(top1)) > 1
        assert found[f"{name}_top1"] == pytest.approx(np.mean(top1))
        assert found[f"{name}_std"] == pytest.approx(np.std(top1, ddof=1))
        assert found[f"{name}_top5"] >= found[f"{name}_top1"]
    assert found["30pct_top1"] > found["5pct_top1"] > 1 / 7
    assert found == LowShot(shares=(0.05, 0.3), draws=4, seed=2).forward(encoder(), data)


def test_names_follow_shares_draws_and_classes() -> None:
    data = Pixels([i % 3 for i in range(60)], classes=3)
    assert LowShot(draws=1).forward(encoder(), data).keys() == {"1pct_top1", "10pct_top1"}
    assert LowShot(shares=(0.005,)).forward(encoder(), data).keys() == {"0_5pct_top1", "0_5pct_std"}


def test_floors_are_chance_and_pixels_for_each_share() -> None:
    data = Pixels([0, 1, 0, 0] * 10, classes=2, test=40)
    floors = LowShot().floors(pixel_encoder(data), data)
    scores = LowShot().forward(pixel_encoder(data), data)
    assert floors == {
        name: {"chance": 0.5, "raw pixels": scores[name]} for name in ("1pct_top1", "10pct_top1")
    }


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="shares names one twice"):
        LowShot(shares=(0.1, 0.1))
    with pytest.raises(UserError, match="all training images are of one class"):
        LowShot().forward(encoder(), Pixels([1] * 9))


def test_protocol_names_every_constant() -> None:
    protocol = LowShot(shares=(0.02, 0.2), draws=6, inverse_penalty=3, iterations=70, seed=4).protocol
    for part in ("low_shot/1", "0.02,0.2", "6 draws", "C=3 ", "70 iterations", "seed=4", "no intercept"):
        assert part in protocol
    assert "\n" not in protocol
