"""How far features move when an image is changed."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional

from dino_lab.components.evaluators._changes import CHANGES
from dino_lab.components.evaluators.invariance import Invariance, distance_between
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions, registry
from dino_lab.reports.page.evaluator_files import charts_of


class Pictures:
    """Random blots, so that neighbouring pixels are alike."""

    channels = 3

    def __init__(self, count: int, size: int = 12, channels: int = 3) -> None:
        generator = torch.Generator().manual_seed(count)
        coarse = torch.rand(count, channels, 4, 4, generator=generator)
        fine = nn.functional.interpolate(coarse, size, mode="bilinear")
        self.images = (fine * 255).round().to(torch.uint8)
        self.test_images, self.channels, self.size = count, channels, size

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images in self.images.split(batch_size):
            yield images, torch.zeros(len(images), dtype=torch.int64)


class Linear(nn.Module):
    """A fixed matrix on the pixels; features keep their sign, so that no distance vanishes."""

    dim = 5

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.matrix = nn.Parameter(torch.randn(5, 3 * size * size, generator=generator), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.matrix.T


class Colours(nn.Module):
    """The mean of each channel, whatever stands where."""

    dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def encoder(backbone: nn.Module, size: int = 12) -> Encoder:
    return Encoder(Network(backbone, nn.Identity()), size, nullcontext)


def cosine_distance(a: list[float], b: list[float]) -> float:
    return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


# By hand, one image at a time: what each change does to image i at a strength.
BY_HAND = {
    "rotation": lambda x, s, i: functional.rotate(
        x, s if i % 2 == 0 else -s, interpolation=functional.InterpolationMode.BILINEAR
    ),
    "brightness": lambda x, s, i: x * (1 + s if i % 2 == 0 else 1 - s),
    "contrast": lambda x, s, i: functional.adjust_contrast(x, 1 + s if i % 2 == 0 else 1 - s),
    "saturation": lambda x, s, i: functional.adjust_saturation(x, 1 + s if i % 2 == 0 else 1 - s),
    "hue": lambda x, s, i: functional.adjust_hue(x, s if i % 2 == 0 else -s),
    "greyscale": lambda x, s, i: (1 - s) * x + s * functional.rgb_to_grayscale(x, 3),
    "solarize": lambda x, s, i: torch.tensor(
        [1 - v if v >= 1 - s else v for v in x.flatten().tolist()]
    ).view_as(x),
    "flip": lambda x, s, i: x[:, :, list(range(x.shape[2] - 1, -1, -1))],
}


@pytest.mark.parametrize(("count", "images"), [(300, 270), (7, 500), (2, 2)])
def test_scores_are_those_of_a_loop(count: int, images: int) -> None:
    data, encode = Pictures(count), encoder(Linear())
    scores = Invariance(images=images).forward(encode, data)
    assert list(scores) == list(CHANGES)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    chosen = data.images[sorted(order[:images])]
    pictures = chosen.float() / 255
    plain = encode(chosen).double().tolist()
    pairs = [cosine_distance(a, b) for i, a in enumerate(plain) for b in plain[:i]]
    between = sum(pairs) / len(pairs)
    for name, by_hand in BY_HAND.items():
        if count == 300 and name not in ("rotation", "brightness", "flip"):
            continue  # once past one batch is enough for the rest
        curve = []
        for strength in CHANGES[name].strengths:
            changed = torch.stack([by_hand(x, strength, i) for i, x in enumerate(pictures)])
            moved = encode((changed.clamp(0, 1) * 255).round().to(torch.uint8)).double().tolist()
            distances = [cosine_distance(a, b) for a, b in zip(plain, moved, strict=True)]
            curve.append(sum(distances) / len(distances) / between)
        assert scores[name] == pytest.approx(sum(curve) / len(curve), rel=1e-6), name


@pytest.mark.parametrize("count", [2, 9, 40])
def test_distance_between_images_is_that_of_all_pairs(count: int) -> None:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = [cosine_distance(a, b) for i, a in enumerate(rows.tolist()) for b in rows[:i].tolist()]
    directions = nn.functional.normalize(rows, dim=-1)
    assert distance_between(directions) == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)


def test_a_network_that_sees_mean_colours_is_blind_to_places_and_not_to_colours() -> None:
    scores = Invariance(images=50).forward(encoder(Colours()), Pictures(50))
    assert scores["flip"] < 1e-9
    assert scores["blur"] < 0.02
    assert scores["hue"] > 0.5
    assert scores["greyscale"] > 0.1


def test_changes_grow_with_their_strength() -> None:
    # Far below half a turn, where a solarised image would be itself again.
    data, encode = Pictures(60), encoder(Linear())
    found = json.loads(Invariance().files(encode, data)["invariance.json"])
    for name in ("crop", "brightness", "contrast", "saturation", "blur", "greyscale", "noise"):
        curve = found[name]["relative distance"]
        assert curve == sorted(curve), name
        assert curve[-1] > 0


def test_a_crop_is_a_window_and_noise_has_its_deviation() -> None:
    ramp = torch.arange(0, 240, 10, dtype=torch.uint8).expand(20, 3, 24, 24)
    cropped = CHANGES["crop"](ramp, 0.75, torch.Generator().manual_seed(0)).float()
    spans = (cropped.amax((1, 2, 3)) - cropped.amin((1, 2, 3))) / 230
    assert spans.max() < 0.55
    assert spans.min() > 0.4
    assert cropped.amin((1, 2, 3)).unique().numel() > 3  # at places of their own
    grey = torch.full((4, 3, 50, 50), 128, dtype=torch.uint8)
    noisy = CHANGES["noise"](grey, 0.1, torch.Generator().manual_seed(0)).float() / 255
    assert noisy.std().item() == pytest.approx(0.1, rel=0.02)


def test_blur_is_a_gaussian_of_the_share_of_the_width() -> None:
    dot = torch.zeros(1, 3, 101, 101, dtype=torch.uint8)
    dot[..., 50] = 255  # a line
    row = CHANGES["blur"](dot, 0.05, torch.Generator())[0, 0, 50].double()
    where = torch.arange(101) - 50
    sigma = ((row * where**2).sum() / row.sum()).sqrt().item()
    assert sigma == pytest.approx(5.05, rel=0.05)


def test_the_same_seed_gives_the_same_scores() -> None:
    data, encode = Pictures(30), encoder(Linear())
    first, again, other = (Invariance(seed=seed).forward(encode, data) for seed in (0, 0, 1))
    assert first == again
    assert {name for name in CHANGES if first[name] != other[name]} == {"crop", "noise"}


def test_files_are_a_picture_and_the_numbers_behind_the_scores() -> None:
    data, encode = Pictures(20), encoder(Linear())
    evaluator = Invariance()
    scores = evaluator.forward(encode, data)
    files = evaluator.files(encode, data)
    assert files == Invariance().files(encode, data)
    found = json.loads(files["invariance.json"])
    assert found["images"] == 20
    for name, score in scores.items():
        assert list(found[name]) == [CHANGES[name].unit, "relative distance"]
        assert score == pytest.approx(np.mean(found[name]["relative distance"]))
    charts = {chart.title: chart for chart in charts_of(found)}  # as a report has them
    assert set(charts) == {name for name in CHANGES if len(CHANGES[name].strengths) > 1}
    assert (charts["crop"].x_label, charts["crop"].y_label) == (CHANGES["crop"].unit, "relative distance")
    assert Image.open(io.BytesIO(files["curves.png"])).width > 600


def test_features_that_are_all_the_same_do_not_move() -> None:
    class Constant(Colours):
        def forward(self, images: Tensor) -> Tensor:
            return torch.ones(len(images), 3)

    assert set(Invariance().forward(encoder(Constant()), Pictures(5)).values()) == {0.0}


@pytest.mark.parametrize(
    ("data", "factor", "message"),
    [
        (Pictures(1), 1.0, "needs two test images, and there is 1"),
        (Pictures(3, channels=4), 1.0, "changes grey or RGB images, not 4 channels"),
        (Pictures(3), math.nan, "not finite"),
    ],
)
def test_what_it_cannot_measure_is_one_line(data: Pictures, factor: float, message: str) -> None:
    backbone = Linear()
    backbone.matrix *= factor
    with pytest.raises(UserError, match=message):
        Invariance().forward(encoder(backbone), data)


def test_protocol_names_every_constant() -> None:
    protocol = Invariance(images=9, seed=4, options=EvaluatorOptions(of="student")).protocol
    for part in ("invariance/1:", "9 test images, drawn", "seed 4", "rotation 5,15,45,90", "student"):
        assert part in protocol
    assert "\n" not in protocol


def test_images_are_of_all_classes_where_the_split_is_ordered_by_class() -> None:
    data = Pictures(600)
    data.images[:300] = 255 - data.images[:300] // 8  # a class of bright images, then one of dark ones
    data.images[300:] //= 8
    found = Invariance(images=64)._measure(encoder(Linear()), data)  # type: ignore[arg-type]
    alone = Pictures(600)
    alone.images = data.images[:64]
    alone.test_images = 64
    of_one_class = Invariance(images=64)._measure(encoder(Linear()), alone)  # type: ignore[arg-type]
    assert found["images"] == 64
    assert found["between"] > 1.5 * of_one_class["between"]


def test_operations_of_a_spec_are_measured_besides() -> None:
    """Inverted images are far away, blurred ones near, and an operation that is drawn changes some of them."""
    inverted, seldom = {"kornia.RandomInvert": 1.0}, {"kornia.RandomInvert": 0.5}
    given = {"name": "invariance", "ops": [{"blur": {"sigma": [1, 1], "p": 1}}, seldom, inverted]}
    params = registry.find("evaluator", "invariance").params.model_validate(given)
    part = registry.build("evaluator", params)
    data, encode = Pictures(60), encoder(Colours())
    state = torch.get_rng_state()
    scores, plain = part.forward(encode, data), Invariance().forward(encode, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: scores[name] for name in plain} == plain
    some, every = scores["kornia.RandomInvert"], scores["kornia.RandomInvert_2"]
    assert set(scores) - set(plain) == {"blur_2", "kornia.RandomInvert", "kornia.RandomInvert_2"}
    assert scores["blur_2"] < 0.1 * every
    assert 0.25 * every < some < 0.75 * every
    assert "RandomInvert" in part.protocol
    assert "RandomInvert" not in Invariance().protocol
    assert len(part.files(encode, data)) == 2
