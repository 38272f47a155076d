from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from torch import Tensor, nn

from dino_lab.components.evaluators import spectrum as _spectrum
from dino_lab.components.evaluators.spectrum import Spectrum, random_crops
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions

SIZES = [(2, 3), (30, 5), (9, 17)]


def features(images: int, D: int) -> Tensor:
    generator = torch.Generator().manual_seed(images)
    return torch.randn(images, D, generator=generator) * torch.arange(1, D + 1) + 1


def unit(x: Tensor) -> list[list[float]]:
    return [[value / math.hypot(*row) for value in row] for row in x.double().tolist()]


@pytest.mark.parametrize(("images", "D"), SIZES)
def test_rankme_is_that_of_the_equation(images: int, D: int) -> None:
    x = features(images, D)
    values = numpy.linalg.svd(x.double().numpy(), compute_uv=False).tolist()
    shares = [value / sum(values) + 1e-7 for value in values]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert _spectrum.rank_me(x) == pytest.approx(expected, rel=1e-6)


def test_rankme_counts_directions() -> None:
    assert _spectrum.rank_me(torch.eye(12)) == pytest.approx(12, rel=1e-4)
    assert _spectrum.rank_me(torch.ones(9, 4)) == pytest.approx(1, rel=1e-4)
    assert math.isfinite(_spectrum.rank_me(torch.zeros(9, 4)))


@pytest.mark.parametrize(("images", "D"), SIZES)
def test_spread_is_that_of_a_loop(images: int, D: int) -> None:
    rows = unit(features(images, D))
    stds = []
    for column in zip(*rows, strict=True):
        mean = sum(column) / images
        stds.append(math.sqrt(sum((value - mean) ** 2 for value in column) / images))
    assert _spectrum.spread(features(images, D)) == pytest.approx(sum(stds) / D, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 4, 1024])
@pytest.mark.parametrize(("images", "D"), SIZES)
def test_uniformity_is_that_of_a_loop(
    images: int, D: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_spectrum, "CHUNK", chunk)
    kernels = [math.exp(-2 * math.dist(x, y) ** 2) for x, y in combinations(unit(features(images, D)), 2)]
    expected = math.log(sum(kernels) / len(kernels))
    assert _spectrum.uniformity(features(images, D)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("images", "D"), SIZES)
def test_alignment_is_that_of_a_loop(images: int, D: int) -> None:
    one, other = features(images, D), features(images + 1, D)[1:]
    distances = [math.dist(x, y) ** 2 for x, y in zip(unit(one), unit(other), strict=True)]
    assert _spectrum.alignment(one, other) == pytest.approx(sum(distances) / images, rel=1e-6)
    assert _spectrum.alignment(one, 3 * one) == pytest.approx(0, abs=1e-12)


def test_eigenvalues_are_those_of_scikit_learn() -> None:
    x = features(40, 6)
    expected = PCA().fit(x.double().numpy()).explained_variance_ * 39 / 40
    numpy.testing.assert_allclose(_spectrum.eigenvalues(x), expected, rtol=1e-6)


def test_crops_lie_in_the_image_and_are_those_of_the_seed() -> None:
    ramp = torch.arange(24, dtype=torch.uint8).mul(10)
    images = torch.stack([ramp.expand(24, 24), ramp[:, None].expand(24, 24)]).repeat(200, 1, 1, 1)
    crops = random_crops(images, 0.25, 8, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 2, 8, 8)
    assert crops.dtype == torch.uint8
    flipped = crops[:, 0, 4, -1] < crops[:, 0, 4, 0]
    assert 70 < flipped.sum() < 130
    # Across 8 of 8 pixels a crop shows 7/8 of its width, 10 levels a pixel.
    width = (crops[:, 0, 4, -1].float() - crops[:, 0, 4, 0].float()).abs() * 8 / 70
    height = (crops[:, 1, -1, 4].float() - crops[:, 1, 0, 4].float()) * 8 / 70
    share = width * height / 24**2
    assert 0.2 < share.min() < 0.35
    assert 0.8 < share.max() < 1.05
    assert torch.equal(crops, random_crops(images, 0.25, 8, torch.Generator().manual_seed(0)))
    assert not torch.equal(crops, random_crops(images, 0.25, 8, torch.Generator().manual_seed(1)))


def test_an_image_of_one_pixel_has_crops() -> None:
    pixel = torch.tensor([7, 200], dtype=torch.uint8).view(2, 1, 1, 1)
    crops = random_crops(pixel, 0.1, 4, torch.Generator().manual_seed(0))
    assert torch.equal(crops, pixel.expand(2, 1, 4, 4))


class Corners(nn.Module):
    """Features are the pixels of the left and the right column."""

    dim = 16

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, :, [0, -1]].flatten(1)


class Noise:
    """Test images of noise."""

    classes = 2

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from ((images, torch.zeros(len(images)).long()) for images in self.images.split(7))


def encoder() -> Encoder:
    return Encoder(Network(Corners(), nn.Identity(), mean=(0.5,), std=(0.5,)), 8, nullcontext)


def test_scores_are_those_of_the_test_split(tmp_path: Path) -> None:
    data, spectrum = Noise(50), Spectrum()
    scores = spectrum.forward(encoder(), data)
    assert list(scores) == ["rankme", "std", "std_even", "uniformity", "alignment"]
    x = encoder()(data.images)
    assert scores["rankme"] == pytest.approx(_spectrum.rank_me(x))
    assert scores["uniformity"] == pytest.approx(_spectrum.uniformity(x))
    assert scores["std"] == pytest.approx(0.25, rel=0.1)
    assert scores["std_even"] == 0.25
    assert 0 < scores["alignment"] < 2.2
    assert scores == spectrum.forward(encoder(), data)
    assert scores["alignment"] != Spectrum(seed=1).forward(encoder(), data)["alignment"]
    # Crops of the whole image differ by their ratio and flip alone.
    assert Spectrum(least_area=1.0).forward(encoder(), data)["alignment"] < scores["alignment"]
    picture = Image.open(io.BytesIO(spectrum.files(encoder(), data)["eigenvalues.png"]))
    assert picture.format == "PNG"
    assert min(picture.size) > 300


def test_one_test_image_is_refused() -> None:
    with pytest.raises(UserError, match="one test image"):
        Spectrum().forward(encoder(), Noise(1))


def test_protocol_names_every_constant() -> None:
    protocol = Spectrum(least_area=0.3, seed=5, options=EvaluatorOptions(of="student")).protocol
    for part in ("spectrum/1", "student", "1e-07", "t=2", "alpha=2", "0.3 to 1", "seed=5", "test split"):
        assert part in protocol
    assert "\n" not in protocol
