"""Segmentation from tokens against loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from components.planted import Drawn, encoder, noise
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from dino_lab.components.evaluators.dense import (
    Dense,
    _linear,
    accuracy,
    cell_classes,
    confusion,
    mean_iou,
    pixel_classes,
)
from dino_lab.errors import UserError


def truth(count: int, size: int, classes: int, seed: int = 0) -> Tensor:
    random = np.random.default_rng(seed)
    names = [*range(classes), 255]
    return torch.from_numpy(random.choice(names, (count, size, size)).astype(np.uint8))


@pytest.mark.parametrize(("size", "cells", "classes"), [(8, 4, 3), (9, 3, 5), (6, 6, 2)])
def test_the_class_of_a_cell_is_that_of_most_of_its_pixels(size: int, cells: int, classes: int) -> None:
    maps = truth(4, size, classes)
    maps[0, : size // cells, : size // cells] = 255
    found = cell_classes(maps, (cells, cells), classes)
    step = size // cells
    for n in range(4):
        for y in range(cells):
            for x in range(cells):
                inside = maps[n, y * step : (y + 1) * step, x * step : (x + 1) * step].flatten().tolist()
                known = [name for name in inside if name != 255]
                most = max(sorted(set(known)), key=known.count) if known else 255
                assert found[n, y, x] == most
    assert found[0, 0, 0] == 255


@pytest.mark.parametrize(("classes", "seed"), [(2, 0), (5, 1), (11, 2)])
def test_scores_are_those_of_scikit_learn(classes: int, seed: int) -> None:
    maps = truth(3, 10, classes + 1, seed)
    maps[maps == classes] = 0  # a class that is only ever said
    said = torch.randint(classes + 1, maps.shape, generator=torch.Generator().manual_seed(seed))
    counts = confusion(maps, said, classes + 1)
    known = (maps != 255).flatten()
    right, found = maps.flatten()[known].numpy(), said.flatten()[known].numpy()
    names = list(range(classes + 1))
    np.testing.assert_array_equal(counts.numpy(), confusion_matrix(right, found, labels=names))
    expected = jaccard_score(right, found, labels=list(range(classes)), average="macro")
    assert mean_iou(counts) == pytest.approx(expected, rel=1e-9)
    assert accuracy(counts) == pytest.approx(accuracy_score(right, found), rel=1e-6)


def test_between_cells_scores_are_interpolated() -> None:
    scores = torch.zeros(1, 2, 1, 2)
    scores[0, 0, 0, 0], scores[0, 1, 0, 1] = 1.0, 0.5
    # Centres of the cells are pixels 0.5 and 2.5 of 4; class 1 wins where 0.5 t > 1 - t, t > 2/3.
    assert pixel_classes(scores, 4)[0].tolist() == [[0, 0, 1, 1]] * 4


def test_the_linear_classifier_is_scikit_learns() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, asked = (torch.randn(n, 6, generator=generator) * 3 + 1 for n in (200, 50))
    cells = (bank[:, 0] > 1).long() * 3 + (bank[:, 1] > 2).long()  # of 6 classes 0, 1, 3 and 4
    found = _linear(bank, cells, asked, 6, 0.5)
    mean, std = bank.double().mean(0), bank.double().std(0)
    model = LogisticRegression(C=0.5, max_iter=500).fit(((bank.double() - mean) / std).numpy(), cells.numpy())
    expected = model.predict_proba(((asked.double() - mean) / std).numpy())
    np.testing.assert_allclose(found[:, [0, 1, 3, 4]].numpy(), expected, atol=1e-5)
    assert (found[:, [2, 5]] == 0).all()


def test_neighbours_vote_as_scikit_learns_do() -> None:
    generator = torch.Generator().manual_seed(0)
    bank, asked = (torch.randn(n, 4, generator=generator) for n in (60, 20))
    cells = torch.randint(3, (60,), generator=generator)
    found = Dense(k=7, temperature=0.2)._neighbours(bank, cells, asked, 3)

    def votes(distances: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp((1 - distances) / 0.2))

    model = KNeighborsClassifier(7, metric="cosine", weights=votes).fit(bank.numpy(), cells.numpy())
    np.testing.assert_allclose(found.numpy(), model.predict_proba(asked.numpy()), atol=1e-5)


def scene(count: int, size: int = 16) -> Drawn:
    """Classes are colours: red is class 1, green class 2, the rest background."""
    random = torch.Generator().manual_seed(0)
    kinds = torch.randint(3, (count, size // 4, size // 4), generator=random)
    kinds = kinds.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = noise(count, size) // 8
    for kind in (1, 2):
        images[:, kind - 1][kinds == kind] += 200
    return Drawn(images, kinds.clamp(max=1).to(torch.uint8), kinds.to(torch.uint8))


def test_tokens_that_say_the_class_are_read() -> None:
    data = scene(8)
    scores = Dense(images=8, k=3).forward(encoder(16), data)
    assert scores["linear_accuracy"] > 0.85  # borders between cells are interpolated
    assert scores["knn_accuracy"] > 0.85
    assert scores["linear_miou"] > 0.75
    assert scores["majority_miou"] < 0.2
    parts = Dense(images=8, k=3, of_what="parts").forward(encoder(16), data)
    assert parts["majority_accuracy"] == pytest.approx(float((data.objects[4:] == 1).float().mean()))


def test_what_cannot_be_scored() -> None:
    data = scene(4)
    with pytest.raises(UserError, match="k = 100 is more than the 32 tokens"):
        Dense(images=4, k=100).forward(encoder(16), data)
    with pytest.raises(UserError, match="leaves one part empty"):
        Dense(images=4, train_share=0.01).forward(encoder(16), data)
    nothing = Drawn(data.images, torch.zeros_like(data.objects))
    with pytest.raises(UserError, match="have one class only"):
        Dense(images=4).forward(encoder(16), nothing)
    assert "first 400 images" in Dense().protocol
