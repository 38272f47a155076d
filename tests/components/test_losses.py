from __future__ import annotations

import math

import pytest
import torch
from reference.compare import relative_errors
from torch import Tensor

from dino_lab.components.losses.cross_entropy import CrossEntropy
from dino_lab.components.losses.mse import Mse
from dino_lab.components.targets.center import Center
from dino_lab.components.targets.softmax import Softmax

S, T, B, K = 5, 2, 3, 4
DINO = 1 - torch.eye(S, T, dtype=torch.int8)
SOME = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 1], [0, 0]], dtype=torch.int8)
TWO_VIEWS = torch.tensor([[0, 1], [1, 0], [0, 0], [0, 0], [0, 0]], dtype=torch.int8)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(pairs: Tensor) -> list[tuple[int, int]]:
    return [(s, t) for s, row in enumerate(pairs.tolist()) for t, sign in enumerate(row) if sign == 1]


def naive_cross_entropy(student: Tensor, target: Tensor, pairs: Tensor, temperature: float) -> float:
    terms = []
    for s, t in positive(pairs):
        for b in range(student.shape[1]):
            logits = [value / temperature for value in student[s, b].tolist()]
            log_total = math.log(sum(math.exp(value) for value in logits))
            terms.append(
                -sum(q * (v - log_total) for q, v in zip(target[t, b].tolist(), logits, strict=True))
            )
    return sum(terms) / len(terms)


def naive_mse(student: Tensor, target: Tensor, pairs: Tensor, normalize: bool) -> float:
    terms = []
    for s, t in positive(pairs):
        for b in range(student.shape[1]):
            x, y = student[s, b].tolist(), target[t, b].tolist()
            if normalize:
                x, y = [v / math.hypot(*x) for v in x], [v / math.hypot(*y) for v in y]
            terms.append(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("local_crops", [0, 3])
def test_four_steps_of_dino_are_the_formulas(local_crops: int) -> None:
    """Loss, target, centre, gradient and moving average against plain Python numbers."""
    for quantity, error in relative_errors(local_crops).items():
        assert error < 1e-6, quantity


SIZES = [(2, 2, 2, 2), (5, 2, 3, 7), (3, 1, 1, 5), (10, 2, 2, 129), (2, 2, 7, 1)]  # S, T, B, K


@pytest.mark.parametrize(("s", "t", "b", "k"), SIZES, ids=str)
@pytest.mark.parametrize("duplicates", [False, True])
def test_losses_of_any_size_are_the_formulas(s: int, t: int, b: int, k: int, duplicates: bool) -> None:
    student, target = draw(s, b, k), draw(t, b, k, seed=1)
    if duplicates:  # one sample, seen in one view, however often
        student, target = student[:1, :1].expand(s, b, k), target[:1, :1].expand(t, b, k)
    pairs = 1 - torch.eye(s, t, dtype=torch.int8)
    for normalize in (True, False):
        expected = naive_mse(student, target, pairs, normalize)
        assert Mse(k, normalize=normalize)(student, target, pairs).item() == pytest.approx(
            expected, rel=1e-10
        )
    target = target.softmax(-1)
    expected = naive_cross_entropy(student, target, pairs, 0.1)
    assert CrossEntropy(k)(student, target, pairs).item() == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", [CrossEntropy(K), Mse(K), Mse(K, normalize=False)])
@pytest.mark.parametrize("same", [False, True])
def test_gradients_are_finite_in_both_precisions(
    loss: CrossEntropy | Mse, dtype: torch.dtype, same: bool
) -> None:
    target = draw(T, B, K, seed=1).softmax(-1).to(dtype)
    student = (target[:1].expand(S, B, K) if same else draw(S, B, K)).to(dtype).clone().requires_grad_()
    value = loss(student, target, DINO)
    value.backward()
    assert value.isfinite()
    assert student.grad.dtype == dtype
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("pairs", [DINO, SOME, TWO_VIEWS])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_cross_entropy_is_the_formula(pairs: Tensor, temperature: float) -> None:
    student, target = draw(S, B, K), draw(T, B, K, seed=1).softmax(-1)
    loss = CrossEntropy(K, temperature=temperature)(student, target, pairs)
    expected = naive_cross_entropy(student, target, pairs, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_of_rows_that_do_not_sum_to_one() -> None:
    student, target = draw(S, B, K), draw(T, B, K, seed=1).abs()
    expected = naive_cross_entropy(student, target, DINO, 0.1)
    assert CrossEntropy(K)(student, target, DINO).item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_has_the_gradient_of_its_value() -> None:
    target = draw(T, B, K, seed=1).softmax(-1)
    loss = CrossEntropy(K, temperature=0.5)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, SOME), draw(S, B, K).requires_grad_())


def test_an_untrained_network_has_a_loss_of_ln_k() -> None:
    student, target = torch.zeros(S, B, 1024), torch.full((T, B, 1024), 1 / 1024)
    assert CrossEntropy(1024)(student, target, DINO).item() == pytest.approx(6.9315, abs=1e-4)


@pytest.mark.parametrize("targets", [Center(K), Softmax(K)], ids=["center", "softmax"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_gradients_are_finite_whatever_the_size_of_the_outputs(targets: Center, scale: float) -> None:
    student = (draw(S, B, K) * scale).float().requires_grad_()
    target = targets((draw(T, B, K, seed=1) * scale).float(), 0.0)
    loss = CrossEntropy(K)(student, target, DINO)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [CrossEntropy(K), Mse(K), Mse(K, normalize=False)])
def test_views_without_a_pair_get_no_gradient(loss: CrossEntropy | Mse) -> None:
    student = draw(S, B, K).requires_grad_()
    loss(student, draw(T, B, K, seed=1).softmax(-1), SOME).backward()
    touched = student.grad.abs().sum((1, 2)) > 0
    assert touched.tolist() == (SOME > 0).any(1).tolist()


@pytest.mark.parametrize("pairs", [DINO, SOME, TWO_VIEWS])
@pytest.mark.parametrize("normalize", [True, False])
def test_mse_is_the_formula(pairs: Tensor, normalize: bool) -> None:
    student, target = draw(S, B, K), draw(T, B, K, seed=1)
    expected = naive_mse(student, target, pairs, normalize)
    assert Mse(K, normalize=normalize)(student, target, pairs).item() == pytest.approx(expected, rel=1e-12)


def test_normalised_mse_is_two_minus_two_cosines() -> None:
    student, target = draw(S, B, K), draw(T, B, K, seed=1)
    cosine = torch.cosine_similarity(student[:, None], target[None], dim=-1).mean(-1)
    expected = 2 - 2 * cosine[DINO > 0].mean()
    torch.testing.assert_close(Mse(K)(student, target, DINO), expected)


def test_what_the_losses_say_of_themselves() -> None:
    assert (CrossEntropy.cross_entropy, CrossEntropy.negatives) == (True, False)
    assert (Mse.cross_entropy, Mse.negatives) == (False, False)
