"""What evaluators say of their scores without learning, against counting and enumeration."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from components.planted import Drawn, encoder, noise

from dino_lab.components.evaluators._chance import accuracy_by_chance, average_precision_by_chance
from dino_lab.components.evaluators.attention_boxes import AttentionBoxes
from dino_lab.components.evaluators.attention_masks import AttentionMasks
from dino_lab.components.evaluators.clusters import Clusters
from dino_lab.components.evaluators.knn import Knn
from dino_lab.components.evaluators.linear_probe import LinearProbe
from dino_lab.components.evaluators.logistic import Logistic
from dino_lab.components.evaluators.retrieval import Retrieval
from dino_lab.evaluation.floors import pixel_encoder


class Few:
    """Images of 2 x 2 pixels and one channel, labels as given."""

    channels, size = 1, 2

    def __init__(self, train: list[int], test: list[int], classes: int = 3) -> None:
        self.classes, self.train_images, self.test_images = classes, len(train), len(test)
        self.labels = {"bank": torch.tensor(train), "test": torch.tensor(test)}
        draw = torch.Generator().manual_seed(0)
        self.images = {
            split: torch.randint(256, (len(labels), 1, 2, 2), generator=draw, dtype=torch.uint8)
            for split, labels in self.labels.items()
        }

    def bank(self, batch_size: int):
        return iter([(self.images["bank"], self.labels["bank"])])

    def test(self, batch_size: int):
        return iter([(self.images["test"], self.labels["test"])])

    def pixels(self, split: str) -> np.ndarray:
        """Pixels less the mean training image, in 0..255."""
        flat = {name: images.flatten(1).double().numpy() for name, images in self.images.items()}
        return flat[split] - flat["bank"].mean(0)


@pytest.mark.parametrize(
    ("train", "test", "top", "expected"),
    [
        ([0, 0, 1], [0, 1, 1, 2], 1, 1 / 3),  # always 0 is right for 1 of 4, less than guessing
        ([0, 0, 1], [0, 0, 0, 2], 1, 3 / 4),
        ([0, 0, 1, 1, 1, 2], [0, 1, 1, 2], 2, 3 / 4),  # always 1 and 0
        ([0, 1, 2], [0, 1, 1, 2], 5, 1.0),
    ],
)
def test_chance_is_the_better_of_guessing_and_the_frequent_classes(
    train: list[int], test: list[int], top: int, expected: float
) -> None:
    found = accuracy_by_chance(torch.tensor(train), torch.tensor(test), 3, top)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("images", "relevant"), [(5, 1), (5, 2), (6, 4), (4, 4), (1, 1)])
def test_the_average_precision_of_random_rankings_is_that_of_all_rankings(images: int, relevant: int) -> None:
    def precision(order: tuple[int, ...]) -> float:
        hits = [place for place, item in enumerate(order, 1) if item < relevant]
        return sum(i / place for i, place in enumerate(hits, 1)) / relevant

    every = [precision(order) for order in permutations(range(images))]
    found = average_precision_by_chance(torch.tensor([relevant]), images)
    assert found.item() == pytest.approx(sum(every) / len(every))


def test_neighbours_in_pixels_are_those_of_a_loop() -> None:
    data = Few([0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 1, 0], [0, 1, 2, 0, 0, 0, 1], 3)
    floors = Knn(k=(1, 4), temperature=0.5).floors(pixel_encoder(data), data)
    bank, hits = data.pixels("bank"), {1: 0, 4: 0}
    for pixels, truth in zip(data.pixels("test"), data.labels["test"].tolist(), strict=True):
        cosines = bank @ pixels / np.linalg.norm(bank, axis=1) / np.linalg.norm(pixels)
        for k in hits:
            votes = [0.0, 0.0, 0.0]
            for row in np.argsort(-cosines)[:k]:
                votes[int(data.labels["bank"][row])] += np.exp(cosines[row] / 0.5)
            hits[k] += votes.index(max(votes)) == truth
    assert {name: value["raw pixels"] for name, value in floors.items()} == {
        f"{k}nn": pytest.approx(hit / 7) for k, hit in hits.items()
    }
    # The most frequent class of the training split is 0, of which 4 of 7 test images are.
    assert all(value["chance"] == pytest.approx(4 / 7) for value in floors.values())


def test_top_5_has_its_own_chance() -> None:
    data = Few([0, 1, 2, 3, 4, 5, 6, 7] * 2, list(range(8)), 8)
    floors = Knn(k=(3,)).floors(pixel_encoder(data), data)
    assert {name: value["chance"] for name, value in floors.items()} == {"3nn": 1 / 8, "3nn_top5": 5 / 8}


def test_clusters_are_compared_with_one_cluster() -> None:
    data = Few([0], [0, 0, 0, 1, 2, 1], 3)
    found = Clusters().floors(pixel_encoder(data), data)
    assert {name: value["chance"] for name, value in found.items()} == {"nmi": 0, "ari": 0, "accuracy": 0.5}
    encode = pixel_encoder(data)
    assert {name: value["raw pixels"] for name, value in found.items()} == Clusters().forward(encode, data)


@pytest.mark.parametrize("database", ["train", "test"])
def test_retrieval_is_compared_with_random_rankings(database: str) -> None:
    data = Few([0, 0, 1, 1, 1], [0, 1, 2, 1], 3)
    found = Retrieval(k=(1, 2), database=database).floors(pixel_encoder(data), data)  # type: ignore[arg-type]
    # Relevant images of the queries to which there are some, among the 5 of the bank or the 3 others.
    relevant, images = ([2, 3, 3], 5) if database == "train" else ([1, 1], 3)
    assert found["mP_at_1"]["chance"] == found["mP_at_2"]["chance"]
    assert found["mP_at_1"]["chance"] == pytest.approx(sum(relevant) / len(relevant) / images)
    expected = average_precision_by_chance(torch.tensor(relevant), images).mean().item()
    assert found["mAP"]["chance"] == pytest.approx(expected)


@pytest.mark.parametrize("make", [LinearProbe, Logistic])
def test_classifiers_are_compared_with_chance_and_pixels(make: Callable) -> None:
    data = Few([0, 1, 0, 1, 0, 0], [0, 1, 0], 2)
    found = make().floors(pixel_encoder(data), data)
    assert found["top1"].keys() == {"chance", "raw pixels"}
    assert found.keys() == {"top1"}
    assert found["top1"]["chance"] == pytest.approx(2 / 3)
    assert found["top1"]["raw pixels"] == make().forward(pixel_encoder(data), data)["top1"]


def test_pixels_have_no_blocks() -> None:
    data = Few([0, 1, 0, 1], [0, 1, 0], 2)
    assert LinearProbe(blocks=4).floors(pixel_encoder(data), data) == {"top1": {"chance": 2 / 3}}


@pytest.mark.parametrize(
    ("make", "names", "one"),
    [
        (AttentionMasks, ("centre_box", "whole_image"), "mean_jaccard_60"),
        (AttentionBoxes, ("centre_box_iou", "whole_image_iou"), "tokencut_iou"),
        (AttentionBoxes, ("centre_box_corloc", "whole_image_corloc"), "attention_corloc"),
    ],
)
def test_masks_that_ignore_the_image_are_the_floors_of_attention(
    make: Callable, names: tuple[str, str], one: str
) -> None:
    objects = (noise(6, 16)[:, 0] > 150).to(torch.uint8)
    objects[2] = 0  # an image without an object
    data = Drawn(noise(6, 16), objects)
    scores = make(images=6).forward(encoder(16), data)
    found = make(images=6).floors(encoder(16), data)
    assert list(found[one]) == ["centre square", "whole image"]
    assert list(found[one].values()) == pytest.approx([scores[name] for name in names])
