"""Average precision and rankings against plain loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, average_precision_score
from torch import Tensor

from dino_lab.components.evaluators import _search
from dino_lab.components.evaluators._average_precision import (
    average_precision,
    mean_of_queries,
    precision_at,
    trapezoid_average_precision,
)

SIZES = [(1, 1), (4, 7), (9, 60), (3, 1000)]


def drawn(queries: int, images: int) -> tuple[Tensor, Tensor]:
    """Scores and relevance; something is relevant to every query."""
    generator = torch.Generator().manual_seed(images)
    scores = torch.rand(queries, images, generator=generator, dtype=torch.float64)
    relevant = torch.rand(queries, images, generator=generator) < 0.3
    relevant[:, images // 2] = True
    return scores, relevant


def ranked(scores: Tensor, relevant: Tensor) -> Tensor:
    return relevant.gather(1, scores.argsort(dim=1, descending=True))


@pytest.mark.parametrize("size", SIZES)
def test_average_precision_is_that_of_scikit_learn(size: tuple[int, int]) -> None:
    scores, relevant = drawn(*size)
    expected = [average_precision_score(r, s) for r, s in zip(relevant.numpy(), scores.numpy(), strict=True)]
    found = average_precision(ranked(scores, relevant))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_trapezoids_are_the_area_below_precision_over_recall(size: tuple[int, int]) -> None:
    """Points at every rank, with precision 1 at recall 0; a rank without a hit adds a vertical, no area."""
    relevant = ranked(*drawn(*size))
    expected = []
    for row in relevant.tolist():
        precision, recall = [1.0], [0.0]
        for rank in range(1, len(row) + 1):
            precision.append(sum(row[:rank]) / rank)
            recall.append(sum(row[:rank]) / sum(row))
        expected.append(auc(recall, precision))
    found = trapezoid_average_precision(relevant, relevant.sum(1))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_what_is_behind_the_end_counts_as_not_found() -> None:
    relevant = torch.tensor([[False, True, False, True]])
    whole = trapezoid_average_precision(relevant, torch.tensor([2]))
    part = trapezoid_average_precision(relevant[:, :3], torch.tensor([2]))
    assert whole.item() == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert part.item() == pytest.approx((0 + 1 / 2) / 2 / 2)


def test_one_relevant_image_is_half_the_reciprocal_rank_unless_it_is_first() -> None:
    found = trapezoid_average_precision(torch.eye(5, dtype=torch.bool), torch.ones(5))
    np.testing.assert_allclose(found, [1, 1 / 4, 1 / 6, 1 / 8, 1 / 10])


def test_precision_counts_the_first() -> None:
    relevant = torch.tensor([[True, False, True, True], [False, False, False, True]])
    assert precision_at(relevant, 1).tolist() == [1, 0]
    np.testing.assert_allclose(precision_at(relevant, 3), [2 / 3, 0])


def test_queries_without_a_relevant_image_are_left_out_of_the_mean() -> None:
    relevant = torch.tensor([[True, False], [False, False], [False, True]])
    assert mean_of_queries([average_precision(relevant[:2]), average_precision(relevant[2:])]) == 0.75
    assert math.isnan(mean_of_queries([average_precision(relevant[1:2])]))


@pytest.mark.parametrize("without_itself", [False, True])
@pytest.mark.parametrize(("count", "cosines"), [(1, 1), (17, 40), (17, 10**6)])
def test_rankings_are_those_of_a_loop(
    count: int, cosines: int, without_itself: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_search, "COSINES", cosines)
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = list(_search.rankings(x, x, without_itself=without_itself))
    assert torch.cat([rows for rows, _ in found]).tolist() == list(range(count))
    orders = torch.cat([order for _, order in found]).tolist()
    vectors = x.tolist()
    for i, order in enumerate(orders):
        cosine = [
            sum(a * b for a, b in zip(vectors[i], y, strict=True)) / math.hypot(*vectors[i]) / math.hypot(*y)
            for y in vectors
        ]
        others = [j for j in range(count) if not (without_itself and j == i)]
        assert order == sorted(others, key=lambda j: -cosine[j])


def test_equal_images_keep_their_order() -> None:
    database = torch.tensor([[1.0, 0], [0, 1], [1, 0], [2, 0]])
    [(_, order)] = _search.rankings(torch.tensor([[1.0, 0]]), database)
    assert order.tolist() == [[0, 2, 3, 1]]
