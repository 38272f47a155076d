"""The backbone against the paper's formula, one column at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_lab.registry import registry
from dino_lab.registry.parameters import undescribed
from dino_lab_glom.glom import Glom

SMALL: dict[str, Any] = {"width": 8, "levels": 3, "patch": 4, "iterations": 2, "frequencies": 2}


def glom(size: int = 16, channels: int = 3, **changes: Any) -> Glom:
    torch.manual_seed(0)
    return Glom(channels, size, **{**SMALL, **changes})


def images(height: int, width: int | None = None, count: int = 2, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randn(count, channels, height, width or height, generator=generator)


def perceptron(group: Any, index: int, x: Tensor) -> Tensor:
    """The MLP of one level on one vector, with its biases taken from where the level's lie."""
    hidden, out = group.weight2.shape[1:]
    bias1 = group.bias1[index * hidden : (index + 1) * hidden]
    bias2 = group.bias2[index * out : (index + 1) * out]
    inner = [sum(x[i] * group.weight1[index, i, j] for i in range(len(x))) + bias1[j] for j in range(hidden)]
    inner = [a * (1 + torch.erf(a / math.sqrt(2))) / 2 for a in inner]
    return torch.stack(
        [sum(inner[j] * group.weight2[index, j, k] for j in range(hidden)) + bias2[k] for k in range(out)]
    )


def scaled(x: Tensor) -> Tensor:
    centred = x - x.sum() / len(x)
    return centred / ((centred**2).sum() / len(x) + 1e-5).sqrt()


def place(row: int, column: int, height: int, width: int, frequencies: int) -> Tensor:
    numbers = []
    for at in (-1 + (2 * row + 1) / height, -1 + (2 * column + 1) / width):
        angles = [at * 2**k * math.pi / 2 for k in range(frequencies)]
        numbers += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return torch.tensor(numbers, dtype=torch.float64)


def naive(model: Glom, image: Tensor) -> Tensor:
    """Levels [L, D, h, w] of one image [C, H, W]: Sec. 2 of the paper with loops over everything."""
    patch, weights = model.patch, model.weights
    height, width = image.shape[1] // patch, image.shape[2] // patch
    columns = [(row, column) for row in range(height) for column in range(width)]
    levels = range(model.bottom_up.count)
    seen = {}
    for row, column in columns:
        cut = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        filtered = [(kernel * cut).sum() for kernel in model.embed.weight]
        seen[row, column] = scaled(torch.stack(filtered) + model.embed.bias)
    state = {}
    for at in columns:
        below = seen[at]
        for level in levels:
            below = state[level, at] = scaled(perceptron(model.bottom_up, level, below))
    for _ in range(model.iterations):
        new = {}
        for level in levels:
            for at in columns:
                mine = state[level, at]
                radius = math.inf if model.radius is None else model.radius * 2**level
                asked = [other for other in columns if math.dist(at, other) <= radius]
                votes = [
                    torch.exp(model.beta * (mine @ state[level, other]) / math.sqrt(len(mine)))
                    for other in asked
                ]
                consensus = sum(v * state[level, o] for v, o in zip(votes, asked, strict=True)) / sum(votes)
                told = [
                    (
                        weights[0],
                        perceptron(model.bottom_up, level, seen[at] if level == 0 else state[level - 1, at]),
                    ),
                    (weights[2], mine),
                    (weights[3], consensus),
                ]
                if level + 1 in levels:
                    where = place(*at, height, width, model.frequencies)
                    above = torch.cat((state[level + 1, at], where))
                    told.append((weights[1], perceptron(model.top_down, level, above)))
                # The sum, for an average would only be scaled otherwise.
                new[level, at] = scaled(sum(weight * value for weight, value in told))
        state = new
    by_level = [
        torch.stack([state[level, at] for at in columns], 1).unflatten(1, (height, width)) for level in levels
    ]
    return torch.stack(by_level)


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (8, 8)),
        ({"levels": 2, "iterations": 3, "beta": 0.3}, (8, 12)),
        ({"radius": 1.0}, (12, 16)),
        ({"radius": 0.5, "beta": 3.0, "weights": (1.0, 0.5, 2.0, 0.25)}, (12, 12)),
        ({"weights": (1.0, 0.0, 0.0, 0.0), "levels": 4, "patch": 2}, (4, 6)),
    ],
    ids=str,
)
def test_levels_are_those_of_a_loop_over_columns(changes: dict[str, Any], size: tuple[int, int]) -> None:
    model = glom(**changes).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases too
        x = images(*size).double()
        found = model.levels(x)
        expected = torch.stack([naive(model, image) for image in x])
    assert found.shape == (2, model.bottom_up.count, 8, size[0] // model.patch, size[1] // model.patch)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_it_takes_several_sizes(size: int) -> None:
    model, x = glom().eval(), images(size)
    features, tokens, levels = model(x), model.tokens(x), model.levels(x)
    assert features.shape == (2, 8) == (2, model.dim)
    assert levels.shape == (2, 3, 8, size // 4, size // 4)
    assert torch.equal(tokens, levels[:, 2])
    torch.testing.assert_close(features, tokens.mean((2, 3)))


def test_it_takes_other_channels() -> None:
    assert glom(channels=1)(images(16, channels=1)).shape == (2, 8)


def test_an_image_does_not_depend_on_its_batch() -> None:
    model, x = glom().double(), images(16, count=3).double()
    x[2] = x[0]
    together = model(x)
    torch.testing.assert_close(together[2], together[0])
    torch.testing.assert_close(model(x[:1])[0], together[0])


def test_columns_share_their_networks() -> None:
    """Without places and neighbours, moving the patches moves the embeddings."""
    model = glom(radius=0.1, weights=(1.0, 0.0, 1.0, 1.0)).double()
    x = images(16).double()
    moved = model.levels(x.roll(4, dims=3))
    torch.testing.assert_close(moved, model.levels(x).roll(1, dims=4))


def test_a_column_knows_its_place() -> None:
    x = images(4).repeat(1, 1, 4, 4)  # the same patch everywhere
    tokens = glom(iterations=3).levels(x)[:, 0]
    assert (tokens[..., 0, 0] - tokens[..., 3, 1]).abs().max() > 1e-3


def test_radius_bounds_what_a_column_hears() -> None:
    """One iteration carries news as far as the radius, which doubles from level to level."""
    model, x = glom(size=32, radius=1.0, iterations=1).double(), images(32).double()
    other = x.clone()
    other[..., :4, :4] += 1  # the first column
    changed = (model.levels(x) - model.levels(other)).abs().amax((0, 2)) > 1e-12  # [L, h, w]
    for level, radius in enumerate((1, 2, 4)):
        reached = [[math.hypot(row, column) <= radius for column in range(8)] for row in range(8)]
        assert torch.equal(changed[level], torch.tensor(reached))


def test_iterations_and_consensus_bring_columns_together() -> None:
    x = images(16)
    spread = [
        glom(iterations=n, weights=(0.0, 0.0, 1.0, 1.0), beta=0.1).tokens(x).flatten(2).std(2).mean().item()
        for n in (1, 4, 16)
    ]
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_and_reach_everything(dtype: torch.dtype) -> None:
    model, x = glom(), images(16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        features = model(x) + model(x[..., :8, :8])
    (features.float() * torch.randn(2, 8)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradients_are_those_of_differences() -> None:
    model = glom(levels=2, width=4, iterations=2).double()
    x = images(8, count=1).double().requires_grad_()
    assert torch.autograd.gradcheck(model, (x,))


def test_a_uniform_image_is_no_trouble() -> None:
    model, x = glom(), torch.zeros(2, 3, 16, 16, requires_grad=True)
    model(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_state_goes_round() -> None:
    model, x = glom(), images(16)
    torch.manual_seed(1)
    other = Glom(3, 16, **SMALL)
    assert not torch.equal(other(x), model(x))
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other(x), model(x))
    assert torch.equal(model(x), model(x))


def test_only_weights_decay() -> None:
    assert {name for name, p in glom().named_parameters() if p.ndim <= 1} == {
        "embed.bias", "bottom_up.bias1", "bottom_up.bias2", "top_down.bias1", "top_down.bias2",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 12}, "16 is not a multiple of patch 12"),
        ({"weights": (0.0, 1.0, 0.0, 0.0)}, "weights leave nothing to the top level"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        glom(**changes)


def test_it_needs_no_memory_to_be_checked() -> None:
    with torch.device("meta"):
        model = glom(radius=2.0)
        assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize(("kind", "name"), [("backbone", "glom"), ("evaluator", "islands")])
def test_every_parameter_has_a_description(kind: str, name: str) -> None:
    assert undescribed(registry.find(kind, name).params) == []
