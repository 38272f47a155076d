"""Maps, the masks that hold a share of them, and how they are drawn."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import enlarged, maps_of, mass_masks, similarity
from dino_lab.imaging.pictures import cut_out, frame, heat, overlay, plain, png, sheet
from dino_lab.types import BackboneOutput


def naive_mass(values: list[float], mass: float) -> list[bool]:
    """Go through the entries from the smallest on, and keep those at which more than 1 - mass is reached."""
    total, so_far = sum(values), 0.0
    kept = [False] * len(values)
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        so_far += values[i]
        kept[i] = so_far > (1 - mass) * total
    return kept


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (1, 6, 9, 7)])
@pytest.mark.parametrize("mass", [0.01, 0.6, 0.8, 0.99])
def test_masks_hold_their_share(shape: tuple[int, ...], mass: float) -> None:
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(len(shape) + shape[1])).square()
    masks = mass_masks(maps, mass)
    for map_, mask in zip(maps.flatten(0, 1), masks.flatten(0, 1), strict=True):
        assert mask.flatten().tolist() == naive_mass(map_.double().flatten().tolist(), mass)
        assert map_[mask].sum() >= mass * map_.sum() * (1 - 1e-6)


def test_a_single_hot_cell_is_all_that_is_kept() -> None:
    maps = torch.full((4, 4), 1e-4)
    maps[1, 2] = 1.0
    assert mass_masks(maps, 0.8).nonzero().tolist() == [[1, 2]]
    assert not mass_masks(torch.zeros(4, 4), 0.8).any()


def test_similarity_is_the_cosine_with_the_mean_token_less_the_least() -> None:
    tokens = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = similarity(tokens)
    assert found.shape == (2, 1, 3, 4)
    for image, map_ in zip(tokens, found, strict=True):
        columns = [image[:, i, j] for i in range(3) for j in range(4)]
        mean = sum(columns) / 12
        cosines = [float(c @ mean / (c.norm() * mean.norm())) for c in columns]  # type: ignore[operator, union-attr]
        expected = [c - min(cosines) for c in cosines]
        assert map_.flatten().tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_attention_is_taken_where_there_is_one_and_never_called_so_where_there_is_none() -> None:
    features, tokens, attention = torch.zeros(2, 5), torch.randn(2, 5, 3, 3), torch.rand(2, 4, 3, 3)
    both = maps_of(BackboneOutput(features, None, tokens, attention))
    assert (both.kind, both.names()) == ("attention", ["head 1", "head 2", "head 3", "head 4"])
    assert torch.equal(both.values, attention)
    one = maps_of(BackboneOutput(features, None, tokens))
    assert (one.kind, one.names()) == ("similarity", ["similarity"])
    with pytest.raises(UserError, match="neither attention nor tokens"):
        maps_of(BackboneOutput(features))
    with pytest.raises(UserError, match="attention is not finite"):
        maps_of(BackboneOutput(features, None, tokens, attention * float("nan")))


def test_cells_are_enlarged_to_pixels() -> None:
    masks = torch.tensor([[[[True, False], [False, True]]]])
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert enlarged(masks, (4, 4))[0, 0].int().tolist() == expected


def pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    found = picture.getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def image() -> Tensor:
    return torch.full((3, 4, 4), 100, dtype=torch.uint8)


def test_heat_goes_from_dark_to_light() -> None:
    colours = heat(torch.linspace(0, 1, 32)[None])  # [3, 1, 32]
    grey = (colours * torch.tensor([0.3, 0.59, 0.11])[:, None, None]).sum(0)[0]
    assert (grey.diff() > 0).all()
    assert torch.equal(heat(torch.ones(2, 2)), heat(torch.zeros(2, 2)))


def test_pictures_show_what_they_are_made_of() -> None:
    map_ = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    hot = overlay(image(), map_)
    assert hot.size == (160, 160)
    assert sum(pixel(hot, 120, 40)) > 2 * sum(pixel(hot, 40, 40))
    cut = cut_out(image(), map_ > 0)
    assert pixel(cut, 120, 40) == (100, 100, 100)
    assert pixel(cut, 40, 40) == (20, 20, 20)
    boxed = frame(plain(image()), (1, 1, 3, 3), 4, "white")
    assert pixel(boxed, 40, 40) == pixel(boxed, 119, 119) == (255, 255, 255)
    assert pixel(boxed, 39, 39) == pixel(boxed, 120, 120) == pixel(boxed, 80, 80) == (100, 100, 100)
    whole = Image.open(io.BytesIO(png(sheet([[("a", hot), ("b", cut)], [("c", boxed)]], "three"))))
    assert whole.size == (6 + 2 * 166, 22 + 2 * 182)
