"""The grey embedded data: deterministic, annotated, hard for raw pixels."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.nn import functional as F

from dino_lab.components.data._drawing import grid, uniforms
from dino_lab.components.data._grey_render import CLASSES, MATERIALS, PARTS, coverage, texture
from dino_lab.components.data.grey_shapes import GreyShapes
from dino_lab.registry import registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> GreyShapes:
    return GreyShapes(CPU)


@pytest.fixture(scope="module")
def few() -> GreyShapes:
    return GreyShapes(CPU, train_images=40, test_images=20)


def test_images_are_those_of_shapes_of_0_1_0(few: GreyShapes) -> None:
    """The digest was printed by the code of before the component had another name."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for column in few.annotated(split, torch.arange(100)):
            digest.update(column.numpy().tobytes())
    assert digest.hexdigest() == "cb39a2ac55b803779f90f80c9e386c6716547dee03742e610f6313a0d1333b69"


@pytest.mark.parametrize("size", [16, 32, 96])
def test_annotation_matches_itself_and_the_classes(size: int) -> None:
    data = GreyShapes(CPU, size=size, train_images=10, test_images=10, classes=len(CLASSES))
    images, labels, masks, parts, boxes = data.annotated("train", torch.arange(60))
    assert images.shape == (60, 3, size, size)
    assert (images.dtype, masks.dtype, parts.dtype) == (torch.uint8, torch.bool, torch.uint8)
    assert torch.equal(masks, parts > 0)
    names = list(CLASSES)
    for i in range(60):
        ys, xs = masks[i].nonzero(as_tuple=True)
        assert boxes[i].tolist() == [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        assert int(parts[i].max()) <= len(CLASSES[names[int(labels[i])]])
        assert 0.01 < masks[i].float().mean() < 0.6
    if size > 16:
        # Every part of an object that stays inside the picture is seen.
        assert sum(len(parts[i].unique()) - 1 == len(CLASSES[names[int(labels[i])]]) for i in range(60)) > 50


def test_an_object_looks_the_same_at_every_size() -> None:
    small, large = (
        GreyShapes(CPU, size=size, train_images=1, test_images=1)
        .annotated("train", torch.arange(30))[2]
        .float()
        for size in (32, 128)
    )
    assert (F.avg_pool2d(large[:, None], 4)[:, 0] - small).abs().mean() < 0.02


def test_parts_have_the_area_of_geometry() -> None:
    x, y = grid(400)
    areas = {
        "disc": torch.pi,
        "ring": torch.pi * (1 - 0.4**2),
        "square": 1.7**2,
        "bar": 2 * 0.6,
        "post": 2 * 0.6,
        "cross": 2 * 1.2 - 0.36,
        "triangle": 1.9 * 1.9 * 0.466 / 0.885,
        "frame": 1.9**2 - 0.9**2,
    }
    assert set(areas) == set(PARTS)
    for shape, area in areas.items():
        share = coverage(shape, x, y, torch.tensor(0.5), 400).mean() * 4
        assert share == pytest.approx(area * 0.25, rel=0.02), shape


def test_materials_are_balanced_and_their_own_mirror_images() -> None:
    line = (torch.arange(1400) + 0.5) / 1400 * 20 - 10  # 20 periods of waves, 7 of each checks' diagonal
    x, y = line.view(1, -1), line.view(-1, 1)
    still = torch.tensor(0.0)
    for name in MATERIALS:
        pattern = texture(name, x, y, torch.tensor(1.0), (still, still)).expand(1400, 1400)
        assert abs(float(pattern.mean())) < 0.01, name
        assert float(pattern.abs().max()) <= 1
        assert float(pattern.square().mean()) > 0.4
        assert torch.allclose(pattern, pattern.flip(1), atol=1e-4), name
    assert {part.material for parts in CLASSES.values() for part in parts} == set(MATERIALS)


def test_uniform_numbers_are_uniform_and_independent() -> None:
    numbers = uniforms(0, 0, torch.arange(4000), 8, stream=0)
    assert float(numbers.min()) >= 0
    assert float(numbers.max()) < 1
    assert (numbers.mean(0) - 0.5).abs().max() < 0.02
    assert (numbers.var(0) - 1 / 12).abs().max() < 0.005
    assert (torch.corrcoef(numbers.T) - torch.eye(8)).abs().max() < 0.06
    following = torch.corrcoef(torch.stack((numbers[:-1, 0], numbers[1:, 0])))[0, 1]
    assert abs(float(following)) < 0.06
    assert not torch.equal(numbers, uniforms(0, 0, torch.arange(4000), 8, stream=1))
    assert not torch.equal(numbers, uniforms(1, 0, torch.arange(4000), 8, stream=0))


def test_raw_pixels_and_mean_light_know_little_of_the_class(data: GreyShapes) -> None:
    bank, bank_labels = next(data.bank(4000))
    test, labels = next(data.test(1000))

    def neighbours(encode: object) -> float:
        a, b = (encode(images.float() / 255) for images in (bank, test))  # type: ignore[operator]
        a, b = F.normalize(a - a.mean(0), dim=1), F.normalize(b - a.mean(0), dim=1)
        similarity, index = (b @ a.T).topk(20, 1)
        votes = torch.zeros(len(b), data.classes)
        votes.scatter_add_(1, bank_labels[index], (similarity / 0.07).exp())
        return float((votes.argmax(1) == labels).float().mean())

    assert 0.2 < neighbours(lambda x: x.flatten(1)) < 0.4
    # Pixels in order of brightness: all that is left without places.
    assert neighbours(lambda x: x.flatten(1).sort(1).values) < 0.25


def test_parameters_are_bounded() -> None:
    params = registry.find("data", "grey_shapes").params
    assert params.model_validate({"name": "grey_shapes"}).model_dump()["train_images"] == 4000
    for wrong in ({"classes": 99}, {"size": 8}, {"max_shift": 2}, {"test_images": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            params.model_validate({"name": "grey_shapes"} | wrong)
