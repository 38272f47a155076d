"""vicreg and barlow against the papers' formulas, written out with plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.components.losses._pairs import weights
from dino_lab.components.losses.barlow import Barlow
from dino_lab.components.losses.vicreg import Vicreg

TWO_VIEWS = 1 - torch.eye(2, dtype=torch.int8)
MULTICROP = 1 - torch.eye(5, 2, dtype=torch.int8)
THREE = 1 - torch.eye(4, 3, dtype=torch.int8)
EVERY = torch.ones(3, 2, dtype=torch.int8)  # a view with itself too
ONE_WAY = torch.tensor([[0], [1]], dtype=torch.int8)
PAIRS = [TWO_VIEWS, MULTICROP, THREE, EVERY, ONE_WAY]
SIZES = [(2, 3), (5, 4), (7, 1), (3, 16)]  # B, K
Rows = list[list[float]]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean(x: list[float]) -> float:
    return sum(x) / len(x)


def columns(z: Rows) -> Rows:
    return [list(column) for column in zip(*z, strict=True)]


def vicreg(z: Rows, other: Rows, factors: tuple[float, float, float] = (25, 25, 1)) -> float:
    """Eq. 1 to 6, of two views [n][d]."""
    n, d = len(z), len(z[0])

    def covariances(z: Rows) -> Rows:
        centred = [[value - mean(column) for value in column] for column in columns(z)]
        return [[sum(a * b for a, b in zip(x, y, strict=True)) / (n - 1) for y in centred] for x in centred]

    def v(z: Rows) -> float:
        deviations = [math.sqrt(covariances(z)[j][j] + 1e-4) for j in range(d)]
        return sum(max(0, 1 - s) for s in deviations) / d

    def c(z: Rows) -> float:
        matrix = covariances(z)
        return sum(matrix[i][j] ** 2 for i in range(d) for j in range(d) if i != j) / d

    s = sum((a - b) ** 2 for x, y in zip(z, other, strict=True) for a, b in zip(x, y, strict=True)) / n
    return factors[0] * s + factors[1] * (v(z) + v(other)) + factors[2] * (c(z) + c(other))


def vicreg_code(z: Rows, other: Rows, factors: tuple[float, float, float] = (25, 25, 1)) -> float:
    """What the authors' code minimises: F.mse_loss, and half of each side's mean hinge; the rest is Eq. 6."""
    d = len(z[0])
    return vicreg(z, other, (factors[0] / d, factors[1] / 2, factors[2]))


def by_torch(x: Tensor, y: Tensor) -> Tensor:
    """The same as statements of torch, of two views [n, d]."""
    hinges = [F.relu(1 - (side.var(0) + 1e-4).sqrt()).mean() / 2 for side in (x, y)]
    off = [side.T.cov() * (1 - torch.eye(side.shape[1])) for side in (x, y)]
    covariances = [matrix.square().sum() / x.shape[1] for matrix in off]
    return 25 * F.mse_loss(x, y) + 25 * sum(hinges) + sum(covariances)


def barlow(z: Rows, other: Rows, trade_off: float = 0.005) -> float:
    """Eq. 1 and 2, of two views [n][d] that are centred along the batch."""

    def centred(z: Rows) -> Rows:
        return [[value - mean(column) for value in column] for column in columns(z)]

    a, b = centred(z), centred(other)
    loss = 0.0
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            correlation = sum(p * q for p, q in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            loss += (1 - correlation) ** 2 if i == j else trade_off * correlation**2
    return loss


@pytest.mark.parametrize(("B", "K"), SIZES)
def test_two_views_are_the_papers(B: int, K: int) -> None:
    """As siamese gives them: the target is the student."""
    z = draw(2, B, K)
    one, two = z.tolist()
    paper = Vicreg(K, scaling="paper")(z, z, TWO_VIEWS).item()
    assert paper == pytest.approx(vicreg(one, two), rel=1e-8)
    code = Vicreg(K)(z, z, TWO_VIEWS).item()
    assert code == pytest.approx(vicreg_code(one, two), rel=1e-8)
    if K > 1:
        assert code == pytest.approx(by_torch(*z).item(), rel=1e-6)
    assert Barlow(K)(z, z, TWO_VIEWS).item() == pytest.approx(barlow(one, two), rel=1e-8, abs=1e-8)


def test_factors_and_constants_are_where_they_belong() -> None:
    z = draw(2, 5, 4) * 0.1
    one, two = z.tolist()
    for factors in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 5, 7)]:
        loss = Vicreg(4, invariance=factors[0], variance=factors[1], covariance=factors[2])
        assert loss(z, z, TWO_VIEWS).item() == pytest.approx(vicreg_code(one, two, factors), rel=1e-10)
    same = Vicreg(4, scaling="paper", invariance=25 / 4, variance=12.5)  # as the docstring says
    assert same(z, z, TWO_VIEWS).item() == pytest.approx(Vicreg(4)(z, z, TWO_VIEWS).item(), rel=1e-12)
    assert Vicreg(4, deviation=1e-3)(z, z, TWO_VIEWS) < Vicreg(4)(z, z, TWO_VIEWS)
    assert Barlow(4, off_diagonal=2.0)(z, z, TWO_VIEWS).item() == pytest.approx(barlow(one, two, 2.0))


def test_vicreg_says_what_its_terms_are() -> None:
    z = draw(2, 5, 4)
    one, two = z.tolist()
    code, paper = Vicreg(4), Vicreg(4, scaling="paper")
    for loss, naive in ((code, vicreg_code), (paper, vicreg)):
        terms = loss.measure(z, z, TWO_VIEWS)
        for name, factors in [("invariance", (1, 0, 0)), ("variance", (0, 1, 0)), ("covariance", (0, 0, 1))]:
            assert terms[name].item() == pytest.approx(naive(one, two, factors), rel=1e-10)


def unordered(pairs: Tensor) -> dict[frozenset[int], list[tuple[int, int]]]:
    """Every two views to be pulled together, and how student and target are compared for it."""
    found: dict[frozenset[int], list[tuple[int, int]]] = {}
    for s, row in enumerate(pairs.tolist()):
        for t, sign in enumerate(row):
            if sign > 0:
                found.setdefault(frozenset((s, t)), []).append((s, t))
    return found


@pytest.mark.parametrize("pairs", PAIRS, ids=lambda p: str(p.tolist()))
@pytest.mark.parametrize("siamese", [True, False])
def test_any_pairs_are_the_mean_over_pairs_each_counted_once(pairs: Tensor, siamese: bool) -> None:
    (S, T), B, K = pairs.shape, 4, 3
    student = draw(S, B, K)
    target = student[:T] if siamese else draw(T, B, K, seed=1)
    views, others = student.tolist(), target.tolist()
    losses = ((vicreg, Vicreg(K, scaling="paper")), (vicreg_code, Vicreg(K)), (barlow, Barlow(K)))
    for naive, loss in losses:
        terms = [
            mean([naive(views[s], others[t]) for s, t in compared]) for compared in unordered(pairs).values()
        ]
        assert loss(student, target, pairs).item() == pytest.approx(mean(terms), rel=1e-8), loss


def test_weights_of_multicrop() -> None:
    """The two large views meet twice, a small one meets each of them once."""
    expected = torch.tensor([[0, 0.5], [0.5, 0], [1, 1], [1, 1], [1, 1]]) / 7
    torch.testing.assert_close(weights(MULTICROP, torch.float32), expected)


@pytest.mark.parametrize("loss", [Vicreg(4), Barlow(4)])
def test_the_gradient_is_that_of_the_value_and_reaches_both_sides(loss: Vicreg | Barlow) -> None:
    student, target = (draw(5, 6, 4) * 0.3).requires_grad_(), (draw(2, 6, 4, seed=1) * 0.3).requires_grad_()
    loss(student, target, MULTICROP).backward()
    assert (student.grad.abs().sum((1, 2)) > 0).all()
    assert (target.grad.abs().sum((1, 2)) > 0).all()
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, MULTICROP), (student, target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [Vicreg(4), Barlow(4)])
@pytest.mark.parametrize("B", [1, 2, 6])
@pytest.mark.parametrize("same", ["nothing", "samples", "views", "an output"])
def test_gradients_are_finite(loss: Vicreg | Barlow, dtype: torch.dtype, B: int, same: str) -> None:
    z = draw(2, B, 4)
    if same == "samples":
        z = z[:, :1].expand(2, B, 4).clone()
    if same == "views":
        z = z[:1].expand(2, B, 4).clone()
    if same == "an output":
        z[..., 0] = 0.3
    z = z.to(dtype).requires_grad_()
    value = loss(z, z, TWO_VIEWS)
    value.backward()
    assert value.isfinite()
    assert z.grad.dtype == dtype
    assert z.grad.isfinite().all()


def test_views_without_a_pair_count_for_nothing() -> None:
    pairs = torch.tensor([[0, 1], [0, 0], [0, 1]], dtype=torch.int8)
    student, target = draw(3, 4, 3).requires_grad_(), draw(2, 4, 3, seed=1).requires_grad_()
    for loss in (Vicreg(3), Barlow(3)):
        loss(student, target, pairs).backward()
    assert (student.grad.abs().sum((1, 2)) > 0).tolist() == [True, False, True]
    assert (target.grad.abs().sum((1, 2)) > 0).tolist() == [False, True]


def test_what_the_losses_say_of_themselves() -> None:
    for loss in (Vicreg, Barlow):
        assert (loss.cross_entropy, loss.negatives) == (False, False)
