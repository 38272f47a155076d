"""Boxes of masks and of normalised cuts against loops and NumPy."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from components.planted import Drawn, encoder, noise
from PIL import Image
from torch import Tensor

from dino_lab.components.evaluators import attention_boxes as _boxes
from dino_lab.components.evaluators.attention_boxes import AttentionBoxes
from dino_lab.errors import UserError


def flooded(mask: Tensor, start: tuple[int, int]) -> set[tuple[int, int]]:
    """The cells that are reached from one over edges."""
    reached, border = set(), [start]
    while border:
        y, x = border.pop()
        inside = 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1]
        if inside and mask[y, x] and (y, x) not in reached:
            reached.add((y, x))
            border += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
    return reached


@pytest.mark.parametrize(("shape", "seed"), [((6, 7), 0), ((12, 9), 1), ((1, 5), 2), ((8, 8), 3)])
def test_the_largest_component_is_that_of_flooding(shape: tuple[int, int], seed: int) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    parts = [flooded(mask, (y, x)) for y in range(shape[0]) for x in range(shape[1]) if mask[y, x]]
    largest = max(parts, key=len)  # the first one of several
    found = {(y, x) for y, x in _boxes.largest_component(mask).nonzero().tolist()}
    assert found == largest
    ys, xs = [y for y, _ in largest], [x for _, x in largest]
    assert _boxes.box_of(_boxes.largest_component(mask)) == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)


def test_an_empty_mask_has_the_whole_image_as_its_box() -> None:
    empty = torch.zeros(3, 5, dtype=torch.bool)
    assert _boxes.box_of(_boxes.largest_component(empty)) == (0, 0, 5, 3)
    assert _boxes.scaled((0, 0, 5, 3), (3, 5), 30) == (0, 0, 30, 30)


@pytest.mark.parametrize("seed", range(4))
def test_overlap_is_that_of_counted_pixels(seed: int) -> None:
    random = np.random.default_rng(seed)

    def box() -> tuple[int, int, int, int]:
        x0, y0 = random.integers(0, 8, 2)
        return int(x0), int(y0), int(x0 + random.integers(1, 9)), int(y0 + random.integers(1, 9))

    def pixels(box: tuple[int, int, int, int]) -> set[tuple[int, int]]:
        return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}

    one, others = box(), [box() for _ in range(5)]
    expected = [len(pixels(one) & pixels(o)) / len(pixels(one) | pixels(o)) for o in others]
    assert _boxes.overlap(one, torch.tensor(others)).tolist() == pytest.approx(expected, rel=1e-9)


def naive_cut(tokens: Tensor, threshold: float) -> set[tuple[int, int]]:
    """The same from the symmetric form, D^-1/2 (D - W) D^-1/2 z = eigenvalue z with x = D^-1/2 z."""
    _, h, w = tokens.shape
    columns = [tokens[:, i // w, i % w].double().numpy() for i in range(h * w)]
    weights = np.zeros((h * w, h * w))
    for i, a in enumerate(columns):
        for j, b in enumerate(columns):
            cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
            weights[i, j] = 1 if cosine >= threshold else 1e-5
    root = np.diag(weights.sum(1) ** -0.5)
    values, vectors = np.linalg.eigh(root @ (np.diag(weights.sum(1)) - weights) @ root)
    assert values[2] - values[1] > 1e-9, "the second eigenvector is not the only one"
    x = root @ vectors[:, 1]
    seed = int(np.abs(x).argmax())
    side = (x > x.mean()) == (x[seed] > x.mean())
    return flooded(torch.from_numpy(side).view(h, w), (seed // w, seed % w))


@pytest.mark.parametrize(("shape", "seed"), [((6, 4, 5), 0), ((8, 7, 7), 1), ((5, 8, 6), 2)])
def test_the_cut_is_that_of_the_symmetric_form(shape: tuple[int, int, int], seed: int) -> None:
    tokens = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = {(y, x) for y, x in _boxes.token_cut(tokens, 0.2).nonzero().tolist()}
    assert found == naive_cut(tokens, 0.2)


def test_the_cut_finds_what_differs_from_the_rest() -> None:
    tokens = torch.tensor([1.0, 0.0]).view(2, 1, 1).repeat(1, 8, 8)
    tokens[:, 2:5, 3:7] = torch.tensor([0.0, 1.0]).view(2, 1, 1)
    tokens += 0.05 * torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert _boxes.box_of(_boxes.token_cut(tokens, 0.2)) == (3, 2, 7, 5)


def test_where_all_tokens_are_alike_nothing_is_cut() -> None:
    assert _boxes.token_cut(torch.ones(3, 4, 4), 0.2).all()


def scene() -> Drawn:
    """Two images: the attention is on one of two objects, and beside the only one."""
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    images[0, :, 4:12, 8:16] = 255
    images[1, :, 0:4, 0:4] = 255
    maps = torch.zeros(2, 16, 16, dtype=torch.uint8)
    maps[0, 4:12, 8:16], maps[0, 15, 0] = 2, 1
    maps[1, 8:16, 8:16] = 1
    return Drawn(images, maps)


def test_corloc_and_mean_overlap_take_the_object_that_fits_best() -> None:
    scores = AttentionBoxes(images=2).forward(encoder(16), scene())
    assert (scores["attention_corloc"], scores["attention_iou"]) == (0.5, 0.5)
    # The centre square of 16 pixels is 2 to 14: 6 x 8 of 8 x 8 and 12 x 12, and 6 x 6.
    expected = (48 / (64 + 144 - 48) + 36 / (64 + 144 - 36)) / 2
    assert scores["centre_box_iou"] == pytest.approx(expected)
    assert scores["centre_box_corloc"] == 0
    assert scores["whole_image_iou"] == pytest.approx(64 / 256)
    assert scores["whole_image_corloc"] == 0
    assert set(scores) >= {"tokencut_corloc", "tokencut_iou"}


def test_without_attention_it_is_called_a_similarity() -> None:
    scores = AttentionBoxes(images=2).forward(encoder(16, attention=False), scene())
    assert "similarity_corloc" in scores
    assert "attention_corloc" not in scores


def test_the_mean_token_may_be_taken_away() -> None:
    images = noise(2, 16) // 32 + 150  # all tokens point nearly one way
    images[:, 0, 4:12, 8:16] += 40
    data = Drawn(images, (images[:, 0] > 180).to(torch.uint8))
    plain, centred = (AttentionBoxes(images=2, centre=c) for c in (False, True))
    assert plain.forward(encoder(16), data)["tokencut_iou"] == pytest.approx(0.25)  # the whole image
    assert centred.forward(encoder(16), data)["tokencut_iou"] == 1
    assert "less their mean" in centred.protocol
    assert "less their mean" not in plain.protocol


def test_the_picture() -> None:
    files = AttentionBoxes(images=2).files(encoder(16), scene())
    image = Image.open(io.BytesIO(files["boxes.png"])).convert("RGB")
    assert image.size == (6 + 2 * 166, 22 + 182)
    assert {(255, 165, 0), (0, 255, 255), (255, 255, 255)} <= {c for _, c in image.getcolors(10**6) or []}


def test_no_object_is_one_line() -> None:
    data = Drawn(noise(2, 16), torch.zeros(2, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="attention_boxes: none of 2 images has an object"):
        AttentionBoxes(images=2).forward(encoder(16), data)
