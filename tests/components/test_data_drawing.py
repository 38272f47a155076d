"""What all drawn data keep: an image depends on its seed, split and place alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dino_lab.components.data._drawing import Drawn
from dino_lab.components.data.grey_shapes import GreyShapes
from dino_lab.components.data.shapes import Shapes

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[Shapes, GreyShapes])
def few(request: pytest.FixtureRequest) -> Drawn:
    return request.param(CPU, train_images=40, test_images=20)


def like(few: Drawn, **given: Any) -> Drawn:
    return type(few)(CPU, **given)


def test_an_image_does_not_depend_on_its_batch(few: Drawn) -> None:
    whole = few.annotated("train", torch.arange(200))
    for index in (0, 17, 199):
        for a, b in zip(whole, few.annotated("train", torch.tensor([index])), strict=True):
            assert torch.equal(a[index], b[0])
    order = torch.tensor([5, 5, 123, 2])
    for a, b in zip(whole, few.annotated("train", order), strict=True):
        assert torch.equal(a[order], b)


def test_batches_are_the_annotated_images(few: Drawn) -> None:
    images, labels = next(few.bank(40))
    assert torch.equal(images, few.annotated("train", torch.arange(40))[0])
    assert labels.tolist() == [i % 10 for i in range(40)]
    assert torch.equal(next(few.test(20))[0], few.annotated("test", torch.arange(20))[0])
    assert torch.equal(next(like(few, train_images=50, test_images=20).bank(40))[0], images)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for some, its in itertools.islice(few.train(16, 0, 0), 5):
        assert [known[image.numpy().tobytes()] for image in some] == its.tolist()


def test_seed_split_and_index_each_change_the_image(few: Drawn) -> None:
    index = torch.tensor([3])
    image = few.annotated("train", index)[0]
    assert not torch.equal(image, few.annotated("test", index)[0])
    assert not torch.equal(image, few.annotated("train", index + 10)[0])
    other = like(few, train_images=1, test_images=1, seed=1)
    assert not torch.equal(image, other.annotated("train", index)[0])
    assert len({image.numpy().tobytes() for image in few.annotated("train", torch.arange(1000))[0]}) == 1000
