"""The embedded data: deterministic, annotated, of two layouts; neither colour nor background tells the class."""

from __future__ import annotations

import hashlib
import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_lab.components.data import _outlines as outlines
from dino_lab.components.data._backgrounds import OF_BACKGROUND, TEXTURES, Backgrounds
from dino_lab.components.data._drawing import grid, uniforms
from dino_lab.components.data._objects import CLASSES, MATERIALS, MOST_PARTS, PAINTS
from dino_lab.components.data._render import PALETTE
from dino_lab.components.data.shapes import Shapes
from dino_lab.registry import registry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Shapes:
    return Shapes(CPU)


@pytest.fixture(scope="module")
def few() -> Shapes:
    return Shapes(CPU, train_images=40, test_images=20)


@pytest.fixture(scope="module")
def scenes() -> Shapes:
    return Shapes(CPU, train_images=40, test_images=20, layout="scene")


def test_a_scene_does_not_depend_on_its_batch(few: Shapes) -> None:
    scenes = few.scenes(torch.arange(200))
    for index in (0, 17, 199):
        assert torch.equal(scenes[index], few.scenes(torch.tensor([index]))[0])


def test_images_are_the_same_on_every_machine() -> None:
    """The digest changes with every change of what is drawn, which then needs a line in the changelog."""
    data, digest = Shapes(CPU, train_images=1, test_images=1, classes=12), hashlib.sha256()
    drawn = [data.annotated("train", torch.arange(60)), data.annotated("test", torch.arange(60))]
    for column in (*drawn[0], *drawn[1], data.scenes(torch.arange(60))):
        digest.update(column.numpy().tobytes())
    assert digest.hexdigest() == "d3f8561622153c4f6ea4c71342e02eefd41487b38892d882033a997e97b64d7f"


def _each_is_one_of(data: Shapes, images: Tensor, labels: Tensor) -> None:
    """Batches of training have these images, with these labels."""
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for some, its in itertools.islice(data.train(16, 0, 0), 5):
        assert [known[image.numpy().tobytes()] for image in some] == its.tolist()


@pytest.mark.parametrize("size", [16, 32, 96])
def test_annotation_matches_itself_and_the_classes(size: int) -> None:
    data = Shapes(CPU, size=size, train_images=12, test_images=12, classes=len(CLASSES))
    images, labels, masks, parts, boxes = data.annotated("train", torch.arange(60))
    assert images.shape == (60, 3, size, size)
    assert (images.dtype, masks.dtype, parts.dtype) == (torch.uint8, torch.bool, torch.uint8)
    assert torch.equal(masks, parts > 0)
    names = list(CLASSES)
    seen = 0
    for i in range(60):
        ys, xs = masks[i].nonzero(as_tuple=True)
        assert boxes[i].tolist() == [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        there = len(CLASSES[names[int(labels[i])]])
        assert int(parts[i].max()) <= there
        assert 0.02 < masks[i].float().mean() < 0.5
        seen += len(parts[i].unique()) - 1 == there
    if size == 96:  # every part of an object that stays inside the picture is seen
        assert seen > 45


def test_an_object_looks_the_same_at_every_size() -> None:
    small, large = (
        Shapes(CPU, size=size, train_images=1, test_images=1).annotated("train", torch.arange(30))
        for size in (32, 128)
    )
    masks = F.avg_pool2d(large[2].float()[:, None], 4)[:, 0]
    assert (masks - small[2].float()).abs().mean() < 0.02
    images = F.avg_pool2d(large[0].float(), 4)
    assert (images - small[0].float()).abs().mean() < 16  # of 255


def test_what_is_not_the_object_is_the_background() -> None:
    """With and without jitter of parts an image differs where an object is, and nowhere else."""
    one, other = (
        Shapes(CPU, size=96, train_images=1, test_images=1, jitter=jitter).annotated(
            "train", torch.arange(20)
        )
        for jitter in (0.0, 0.06)
    )
    differs = (one[0] != other[0]).any(1)
    near = F.max_pool2d((one[2] | other[2]).float()[:, None], 3, 1, 1)[:, 0] > 0
    assert differs[near].float().mean() > 0.2
    assert (differs & ~near).float().mean() < 0.001  # lines thinner than a pixel are in no mask


OUTLINES = {
    "disc": (outlines.disc(0.1, -0.2, 0.6), math.pi * 0.36),
    "ellipse": (outlines.ellipse(0.1, 0.1, 0.8, 0.3, 25), math.pi * 0.24),
    "box": (outlines.box(-0.1, 0.2, 0.5, 0.3), 0.6),
    "triangle": (outlines.polygon((0, -0.8), (0.7, 0.6), (-0.7, 0.6)), 0.98),
    "half disc": (outlines.above(0.0, outlines.disc(0, 0, 0.8)), math.pi * 0.32),
    "two": (outlines.joined(outlines.box(-0.5, 0, 0.2, 0.2), outlines.box(0.5, 0, 0.2, 0.2)), 0.32),
    "ring": (outlines.without(outlines.disc(0, 0, 0.8), outlines.disc(0, 0, 0.4)), math.pi * 0.48),
    "five": (outlines.around(5, 0.6, lambda x, y: outlines.disc(x, y, 0.2)), 5 * math.pi * 0.04),
}


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_have_the_area_of_geometry_and_measure_distance(name: str) -> None:
    outline, area = OUTLINES[name]
    x, y = (line.expand(1, 400, 400)[0] for line in grid(400))
    distance = outline(x, y)
    assert float((distance < 0).float().mean()) * 4 == pytest.approx(area, rel=0.02)
    down, across = torch.gradient(distance, spacing=2 / 400)
    slope = (down.square() + across.square()).sqrt()[distance.abs() < 0.03]
    assert float(slope.median()) == pytest.approx(1, abs=0.03)


def test_materials_show_both_colours_and_every_class_has_some_parts() -> None:
    line = (torch.arange(400) + 0.5) / 200 - 1
    for name, pattern in MATERIALS.items():
        if pattern is not None:
            share = pattern(line.view(1, -1), line.view(-1, 1)).expand(400, 400)
            assert 0 <= float(share.min()) < float(share.max()) <= 1, name
            assert 0.1 < float(share.mean()) < 0.9, name
    for parts in CLASSES.values():
        assert 2 <= len(parts) <= MOST_PARTS
        assert {part.material for part in parts} <= set(MATERIALS)
        assert max(part.paint for part in parts) < PAINTS


def test_textures_have_no_seam_and_pictures_are_pieces_of_them() -> None:
    textures = Backgrounds(0, len(TEXTURES), 32)._textures
    assert 0 <= float(textures.min()) < float(textures.max()) <= 1
    inside = (textures[..., 1:] - textures[..., :-1]).abs().mean()
    for side in (textures, textures.transpose(2, 3)):
        assert (side[..., 0] - side[..., -1]).abs().mean() < 1.5 * inside
    assert len({tuple((255 * t).round().int().flatten(1).float().mean(1).tolist()) for t in textures}) == len(
        TEXTURES
    )
    drawn = Backgrounds(0, 3, 32).draw(uniforms(0, 0, torch.arange(20), OF_BACKGROUND, 0))
    colours = Backgrounds(0, 3, 32)._textures
    assert drawn.shape == (20, 3, 32, 32)
    assert float(drawn.min()) > float(colours.min()) - 1e-5
    assert float(drawn.max()) < float(colours.max()) + 1e-5


def neighbours(data: Shapes, encode: object) -> float:
    """20-NN accuracy of pixels that are encoded somehow."""
    bank, bank_labels = next(data.bank(4000))
    test, labels = next(data.test(1000))
    a, b = (encode(images.float() / 255) for images in (bank, test))  # type: ignore[operator]
    a, b = F.normalize(a - a.mean(0), dim=1), F.normalize(b - a.mean(0), dim=1)
    similarity, index = (b @ a.T).topk(20, 1)
    votes = torch.zeros(len(b), data.classes)
    votes.scatter_add_(1, bank_labels[index], (similarity / 0.07).exp())
    return float((votes.argmax(1) == labels).float().mean())


def test_raw_pixels_and_light_know_little_of_the_class(data: Shapes) -> None:
    assert 0.2 < neighbours(data, lambda x: x.flatten(1)) < 0.4
    # Pixels of each colour in order: all that is left without places. Classes differ in how much is patterned.
    assert neighbours(data, lambda x: x.flatten(2).sort(2).values.flatten(1)) < 0.6
    assert neighbours(data, lambda x: x.mean((2, 3))) < 0.2


def test_greys_of_an_object_change_places_in_half_of_them(few: Shapes) -> None:
    """The stem of a mushroom is paler than the middle as often as darker."""
    stems = torch.arange(400) * 10 + list(CLASSES).index("mushroom")
    images, _, _, parts, _ = few.annotated("train", stems)
    stem = parts == 1
    light = [image.float().mean(0)[its].mean() for image, its in zip(images, stem, strict=True) if its.any()]
    assert 0.4 < sum(value > 0.48 * 255 for value in light) / len(light) < 0.6


def test_scenes_are_what_training_sees_and_nothing_else(few: Shapes, scenes: Shapes) -> None:
    for name in ("bank", "test"):
        for a, b in zip(getattr(few, name)(7), getattr(scenes, name)(7), strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
    for a, b in zip(
        few.annotated("train", torch.arange(9)), scenes.annotated("train", torch.arange(9)), strict=True
    ):
        assert torch.equal(a, b)
    images = scenes.scenes(torch.arange(40))
    assert not torch.equal(images, next(few.bank(40))[0])
    _each_is_one_of(scenes, images, torch.arange(40) % 10)
    _each_is_one_of(scenes.to(CPU), images, torch.arange(40) % 10)  # type: ignore[arg-type]
    batches = [next(each.train(8, 0, 3))[1] for each in (few, scenes)]
    assert torch.equal(*batches)  # the same order


def test_a_scene_has_several_objects_of_many_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from dino_lab.components.data import shapes

    drawn: list[tuple[str, int]] = []

    def note(canvas: Tensor, parts: Tensor, name: str, *rest: object) -> Tensor:
        drawn.append((name, len(canvas)))
        return canvas

    few = Shapes(CPU, train_images=1, test_images=1)
    monkeypatch.setattr(shapes, "draw_object", note)
    few.scenes(torch.arange(400))
    assert {name for name, _ in drawn} == set(list(CLASSES)[:10])
    assert sum(count for _, count in drawn) / 400 == pytest.approx(1 + 5 * 2 / 3, abs=0.2)


def test_the_palette_has_colours_enough() -> None:
    assert len(set(PALETTE)) == len(PALETTE) >= 2 * PAINTS


def test_parameters_are_bounded() -> None:
    params = registry.find("data", "shapes").params
    assert params.model_validate({"name": "shapes"}).model_dump()["layout"] == "object"
    wrong = (
        {"classes": 99},
        {"size": 8},
        {"max_shift": 2},
        {"test_images": 0},
        {"seed": -1},
        {"layout": "x"},
    )
    for values in wrong:
        with pytest.raises(ValueError, match=next(iter(values))):
            params.model_validate({"name": "shapes"} | values)
