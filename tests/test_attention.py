"""Maps, the masks that hold a share of them, and how they are drawn."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import enlarged, maps_of, mass_masks, similarity
from dino_lab.imaging.pictures import HeatScale, cut_out, frame, heat, legend_of, overlay, plain, png, sheet
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
    assert torch.equal(heat(torch.full((2, 2), 3.0)), heat(torch.ones(2, 2)))
    assert torch.equal(heat(torch.full((2, 2), -3.0)), heat(torch.zeros(2, 2)))


def test_attention_is_coloured_in_multiples_of_uniform_attention() -> None:
    """Maps of 4 x 5 cells: uniform is 1 / 20."""
    flat = torch.full((3, 2, 4, 5), 1 / 20) * (1 + 0.1 * torch.randn(3, 2, 4, 5))
    untrained = HeatScale.of(flat, "attention")
    assert (untrained.factor, untrained.top) == (20.0, 4.0)
    assert untrained.place(torch.tensor([0.0, 1 / 20, 4 / 20, 9.0])).tolist() == pytest.approx(
        [0, 0.25, 1, 1]
    )
    sharp = flat.clone()
    sharp[0, 0, 0] = 10 / 20  # of one head of one image, and so of all
    assert HeatScale.of(sharp, "attention").top == pytest.approx(10.0)
    assert HeatScale.of(sharp, "attention").ticks() == [(0.0, "0"), (pytest.approx(0.1), "1"), (1.0, "10+")]
    similar = HeatScale.of(torch.full((1, 1, 2, 2), 0.1), "similarity")
    assert (similar.factor, similar.top) == (1.0, 0.5)


def test_an_untrained_network_does_not_seem_to_find_anything() -> None:
    flat, sharp = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
    flat[1, 1] *= 1.2
    sharp[1, 1] = 0.6
    both = HeatScale.of(torch.stack([flat, sharp]), "attention")
    assert HeatScale.of(flat, "attention").top == 4.0
    for scale in (HeatScale.of(flat, "attention"), both):
        picture = overlay(image(), flat, scale)
        assert abs(sum(pixel(picture, 60, 60)) - sum(pixel(picture, 20, 20))) < 30
    brightest = overlay(image(), sharp, both)
    assert sum(pixel(brightest, 60, 60)) > 2 * sum(pixel(brightest, 20, 20))


def test_a_legend_has_the_colours_of_the_pictures() -> None:
    scale = HeatScale(16.0, 4.0, "times uniform attention")
    key = legend_of(scale, 161)
    mid_grey = torch.full((3, 4, 4), 127, dtype=torch.uint8)
    for place in (0.05, 0.5, 0.95):
        drawn = pixel(overlay(mid_grey, torch.full((4, 4), place * 4 / 16), scale), 5, 5)
        shown = pixel(key, round(160 * place), 5)
        assert all(abs(a - b) <= 2 for a, b in zip(drawn, shown, strict=True))
    assert pixel(key, 40, 11) == (0, 0, 0), "uniform attention is marked at a quarter"


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_images_of_any_number_of_channels_are_drawn(channels: int) -> None:
    some, map_ = torch.full((channels, 4, 4), 100, dtype=torch.uint8), torch.ones(2, 2) / 4
    scale = HeatScale.of(map_, "attention")
    for picture in (plain(some), cut_out(some, map_ > 0), overlay(some, map_, scale)):
        assert picture.size == (160, 160)


def test_pictures_show_what_they_are_made_of() -> None:
    map_ = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    hot = overlay(image(), map_, HeatScale(1.0, 1.0, ""))
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
