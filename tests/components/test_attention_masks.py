"""Jaccard of attention and objects against loops and scikit-learn."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from components.planted import Drawn, encoder, noise
from PIL import Image
from sklearn.metrics import jaccard_score
from torch import Tensor

from dino_lab.components.evaluators._masks import box_mask, centre_box, jaccard
from dino_lab.components.evaluators.attention_masks import AttentionMasks
from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import mass_masks
from dino_lab.registry import EvaluatorOptions, registry


def objects(count: int, size: int, seed: int = 1) -> Tensor:
    """Maps of 0 to 3 objects, with void."""
    random = np.random.default_rng(seed)
    maps = random.choice([0, 1, 2, 3, 255], p=[0.4, 0.2, 0.2, 0.1, 0.1], size=(count, size, size))
    return torch.from_numpy(maps.astype(np.uint8))


def one_by_one(mask: Tensor, map_: Tensor, name: int) -> float:
    """scikit-learn's Jaccard of a mask and an object, over all pixels that are not void."""
    known = map_ != 255
    return float(jaccard_score((map_ == name)[known].numpy(), mask[known].numpy()))


@pytest.mark.parametrize("size", [8, 13])
def test_jaccard_is_that_of_scikit_learn(size: int) -> None:
    masks = torch.rand(4, size, size, generator=torch.Generator().manual_seed(size)) < 0.4
    map_ = objects(1, size)[0]
    expected = [[one_by_one(mask, map_, name) for mask in masks] for name in (1, 2, 3)]
    np.testing.assert_allclose(jaccard(masks, map_).numpy(), expected, rtol=1e-9)


def test_the_centre_box_takes_half_of_the_area() -> None:
    assert box_mask(centre_box(480), 480).float().mean().item() == pytest.approx(0.5, abs=0.005)
    assert centre_box(32) == (5, 5, 27, 27)


@pytest.mark.parametrize("size", [8, 16])
def test_scores_are_those_of_loops(size: int) -> None:
    images, maps = noise(5, size), objects(5, size)
    maps[3] = torch.where(maps[3] > 0, 255, 0)  # an image without an object
    asked, data = encoder(size, 2), Drawn(images, maps)
    evaluator = AttentionMasks(images=None, masses=(0.3, 0.6))
    scores, each = evaluator.forward(asked, data), evaluator.of_each(asked, data)
    assert list(each) == [0, 1, 2, 4]
    attention = asked.annotated(data, None).output.attention
    assert attention is not None
    best: dict[float, list[float]] = {0.3: [], 0.6: []}
    heads: dict[float, list[list[float]]] = {0.3: [], 0.6: []}
    floors: list[list[float]] = []
    whole, box = torch.ones(size, size, dtype=torch.bool), box_mask(centre_box(size), size)
    for i in (0, 1, 2, 4):
        names = [n for n in maps[i].unique().tolist() if n not in (0, 255)]
        for mass in best:
            of_image = []
            for head in range(3):
                mask = mass_masks(attention[i, head], mass).repeat_interleave(2, 0).repeat_interleave(2, 1)
                of_image.append([one_by_one(mask, maps[i], name) for name in names])
            best[mass].append(float(np.mean(np.max(of_image, axis=0))))
            heads[mass].append([float(np.mean(row)) for row in of_image])
        floors.append([float(np.mean([one_by_one(m, maps[i], n) for n in names])) for m in (box, whole)])
    for mass, percent in ((0.3, "30"), (0.6, "60")):
        assert scores[f"jaccard_{percent}"] == pytest.approx(np.mean(best[mass]), rel=1e-9)
        assert scores[f"mean_jaccard_{percent}"] == pytest.approx(np.mean(heads[mass]), rel=1e-9)
        for k in range(3):
            expected = np.mean([row[k] for row in heads[mass]])
            assert scores[f"head{k + 1}_jaccard_{percent}"] == pytest.approx(expected, rel=1e-9)
    expected_floors = np.mean(floors, axis=0)
    assert [scores["centre_box"], scores["whole_image"]] == pytest.approx(expected_floors.tolist(), rel=1e-9)
    assert len(scores) == 2 * 5 + 2


def test_attention_on_the_object_scores_one() -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[0, 1, 4:8, 8:16] = 255
    maps = (images[:, 1] > 0).to(torch.uint8)
    scores = AttentionMasks(images=1).forward(encoder(16), Drawn(images, maps))
    assert scores["head2_jaccard_80"] == scores["jaccard_80"] == 1
    assert scores["head1_jaccard_80"] == 0


def test_without_attention_it_is_called_a_similarity() -> None:
    data = Drawn(noise(3, 16), objects(3, 16))
    scores = AttentionMasks(images=3).forward(encoder(16, attention=False), data)
    assert set(scores) == {"similarity_jaccard_60", "similarity_jaccard_80", "centre_box", "whole_image"}


@pytest.mark.parametrize("attention", [True, False])
def test_the_picture(attention: bool) -> None:
    data, asked = Drawn(noise(3, 16), objects(3, 16)), encoder(16, attention=attention)
    files = AttentionMasks(images=3, pictures=2).files(asked, data)
    image = Image.open(io.BytesIO(files["heads.png"]))
    scale = 40 + 6  # the colours and their numbers, above the pictures
    assert image.size == (6 + (2 + 2 * (3 if attention else 1)) * 166, 6 + scale + 2 * 182)


def test_images_may_be_shown_at_another_size() -> None:
    data, asked = Drawn(noise(2, 16), objects(2, 16)), encoder(16)
    larger = AttentionMasks(images=2, pixels=32)
    assert larger.forward(asked, data) != AttentionMasks(images=2).forward(asked, data)
    assert asked.at(32, 3).annotated(data, 2).output.attention.shape == (2, 3, 8, 8)  # type: ignore[union-attr]


def test_what_cannot_be_scored() -> None:
    data = Drawn(noise(2, 16), torch.zeros(2, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="none of 2 images has an object"):
        AttentionMasks(images=2).forward(encoder(16), data)
    with pytest.raises(UserError, match="images = 200 is more than the 2 test images"):
        AttentionMasks().forward(encoder(16), data)
    with pytest.raises(ValueError, match="masses names a per cent twice"):
        AttentionMasks(masses=(0.6, 0.6))
    params = registry.find("evaluator", "attention_masks").params
    for wrong in ({"masses": []}, {"masses": [1.0]}, {"images": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            params.model_validate({"name": "attention_masks", **wrong})


def test_the_protocol_says_everything() -> None:
    protocol = AttentionMasks(
        masses=(0.25, 0.6), images=7, pixels=64, options=EvaluatorOptions(of="student")
    ).protocol
    for part in (
        "attention_masks/1:",
        "25,60 %",
        "best head",
        "optimistic",
        "first 7",
        "pixels 64",
        "student",
    ):
        assert part in protocol
