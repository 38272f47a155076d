from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dino_lab.components.regularizers.koleo import Koleo
from dino_lab.types import Output, Views

SIZES = [(1, 2, 3), (2, 5, 4), (3, 7, 1), (2, 3, 64)]  # V, B, D


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(V: int, B: int) -> Views:
    """V views that the teacher sees, and one that it does not."""
    return Views([torch.zeros(V, B, 1, 4, 4), torch.zeros(1, B, 1, 2, 2)], torch.ones(V + 1, V))


def output(features: Tensor, z: Tensor | None = None) -> Output:
    z = features if z is None else z
    return Output(features, z, z)


def naive(x: Tensor) -> float:
    """-1/n sum of log of the least distance to another, of each view; mean over views."""
    terms = []
    for view in x.tolist():
        points = [[value / math.hypot(*point) for value in point] for point in view]
        for i, point in enumerate(points):
            nearest = min(math.dist(point, other) for j, other in enumerate(points) if j != i)
            terms.append(-math.log(nearest + 1e-8))
    return sum(terms) / len(terms)


@pytest.mark.parametrize(("V", "B", "D"), SIZES)
@pytest.mark.parametrize("duplicates", [False, True])
def test_koleo_is_the_formula_on_the_views_of_the_teacher(V: int, B: int, D: int, duplicates: bool) -> None:
    x = draw(V + 1, B, D)
    if duplicates:
        x[:, 1] = x[:, 0]
    value = Koleo()(views(V, B), output(x)).item()
    assert value == pytest.approx(naive(x[:V]), rel=1e-7)


def test_koleo_is_on_features_or_projections() -> None:
    features, z = draw(3, 5, 4), draw(3, 5, 6, seed=1)
    for on, x in (("features", features), ("projections", z)):
        value = Koleo(on=on)(views(2, 5), output(features, z))
        assert value.item() == pytest.approx(naive(x[:2]), rel=1e-7)


def test_koleo_is_least_where_points_are_spread() -> None:
    angles = torch.arange(8) * (2 * math.pi / 8)
    even = torch.stack([angles.cos(), angles.sin()], dim=1)[None].double()
    value = Koleo()(views(1, 8), output(torch.cat([even, even])))
    assert value.item() == pytest.approx(-math.log(2 * math.sin(math.pi / 8)), rel=1e-6)
    assert value < Koleo()(views(1, 8), output(torch.cat([even, even]) + torch.tensor([3.0, 0.0])))


def test_koleo_pushes_the_nearest_apart() -> None:
    x = draw(2, 6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: Koleo()(views(1, 6), output(x)), x)
    Koleo()(views(1, 6), output(x)).backward()
    moved = (x - 1e-3 * x.grad).detach()
    assert naive(moved[:1]) < naive(x.detach()[:1])
    assert not x.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case", ["random", "all the same", "two the same", "nearly the same", "zero", "alone"]
)
def test_gradients_are_finite(dtype: torch.dtype, case: str) -> None:
    x = draw(3, 1 if case == "alone" else 5, 16)
    if case == "all the same":
        x[:] = x[0, 0]
    if case == "two the same":
        x[:, 1] = x[:, 0]
    if case == "nearly the same":
        x = x[:, :1] + 1e-6 * x
    if case == "zero":
        x[:, 1] = 0
    x = x.to(dtype).requires_grad_()
    value = Koleo()(views(2, x.shape[1]), output(x))
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert x.grad.dtype == dtype
    assert x.grad.isfinite().all()


def test_float32_is_close_to_float64_for_neighbours_that_are_close() -> None:
    """A distance from the cosine, sqrt(2 - 2 cos), would be off by a tenth here."""
    x = draw(2, 1, 32) + 1e-3 * draw(2, 4, 32, seed=1)
    exact = naive(x[:1])
    assert Koleo()(views(1, 4), output(x.float())).item() == pytest.approx(exact, rel=1e-4)
