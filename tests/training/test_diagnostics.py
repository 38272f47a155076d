from __future__ import annotations

import math

import pytest
import torch

from dino_lab.training.diagnostics import PATIENCE, Reader, Verdict, diagnose, diagnose_distribution
from dino_lab.training.loop import on_host
from dino_lab.types import Output

PAIRS = 1 - torch.eye(4, 2, dtype=torch.int8)


def output(features: torch.Tensor) -> Output:
    z = torch.zeros(len(features), features.shape[1], 3)
    return Output(features, z, z)


def numbers(target: torch.Tensor, features: torch.Tensor) -> dict[str, float]:
    found = {**diagnose(output(features), target), **diagnose_distribution(target, PAIRS)}
    return on_host(found) | {"loss": 1.0}


def verdict(target: torch.Tensor, features: torch.Tensor, progress: float = 0.5, rows: int = PATIENCE):
    reader = Reader(warm_up=0.1)
    for _ in range(rows):
        seen = reader.read(numbers(target, features), progress)
    return seen


def healthy() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 16, 8)


def test_effective_rank_is_that_of_the_singular_values() -> None:
    features = healthy()
    values = torch.linalg.svdvals(features[0].double())
    p = values / values.sum()
    expected = math.exp(-(p * p.log()).sum())
    found = on_host(diagnose(output(features), torch.zeros(2, 16, 3)))
    assert found["effective_rank"] == pytest.approx(expected)


def test_feature_spread_is_one_on_the_sphere_and_zero_at_a_point() -> None:
    opposite = torch.cat([torch.eye(8), -torch.eye(8)])[None].repeat(4, 1, 1)
    target = torch.zeros(2, 16, 3)
    assert on_host(diagnose(output(opposite), target))["feature_spread"] == pytest.approx(1.0)
    equal = on_host(diagnose(output(torch.ones(4, 16, 8)), target))
    assert equal["feature_spread"] == pytest.approx(0, abs=1e-3)


def test_entropy_weighs_views_as_the_loss_does() -> None:
    sharp, flat = torch.eye(4).repeat(4, 1)[:16], torch.full((16, 4), 0.25)
    target = torch.stack([sharp, flat])
    pairs = torch.tensor([[1, 0], [1, 0], [1, 1]], dtype=torch.int8)  # view 0 counts three times, view 1 once
    found = diagnose_distribution(target, pairs)
    assert found["entropy"].item() == pytest.approx(math.log(4) / 4)
    assert found["entropy_max"].item() == pytest.approx(math.log(4))
    assert found["outputs_in_use"].item() == pytest.approx(4.0)


def test_uniform_targets_are_named_with_ln_k() -> None:
    seen = verdict(torch.full((2, 16, 65536), 1 / 65536), healthy())
    assert seen.name == "collapsed to uniform"
    assert "ln 65536 = 11.090" in seen.sentence
    assert "temperature" in seen.sentence


def test_one_output_is_named() -> None:
    target = torch.zeros(2, 16, 64)
    target[..., 3] = 1
    assert verdict(target, healthy()).name == "collapsed to one output"


def test_sharp_targets_on_many_outputs_are_learning() -> None:
    target = torch.eye(64)[torch.randperm(64)[:16]].repeat(2, 1, 1)
    assert verdict(target, healthy()).name == "learning"


def test_equal_features_are_a_collapse_without_any_distribution() -> None:
    reader = Reader(warm_up=0.1)
    row = {"loss": 0.0, "feature_spread": 0.001, "effective_rank": 1.0, "center_norm": 1.0}
    names = [reader.read(row, 0.5).name for _ in range(PATIENCE)]
    assert names[-1] == "collapsed to one output"
    assert "collapsed" not in "".join(names[:-1])


def test_nothing_collapses_while_warming_up() -> None:
    assert verdict(torch.full((2, 16, 64), 1 / 64), healthy(), progress=0.05).name == "warming up"


def test_one_healthy_row_ends_the_alarm() -> None:
    reader = Reader(warm_up=0.1)
    flat, sharp = torch.full((2, 16, 64), 1 / 64), torch.eye(64)[:16].repeat(2, 1, 1)
    for _ in range(PATIENCE):
        reader.read(numbers(flat, healthy()), 0.5)
    assert reader.verdict.collapsed
    assert reader.read(numbers(sharp, healthy()), 0.5).name == "learning"


def spreads(*values: float) -> str:
    """The last verdict of rows with these feature spreads, none of which says anything else."""
    reader = Reader(warm_up=0.1)
    row = {"loss": 1.0, "entropy": 1.0, "entropy_max": 4.0, "outputs_in_use": 20.0, "effective_rank": 3.0}
    return [reader.read(row | {"feature_spread": value}, 0.5) for value in values][-1].name


def test_features_that_drew_together_are_a_collapse() -> None:
    assert spreads(0.4, *[0.06] * PATIENCE) == "collapsed to one output"
    assert spreads(0.4, *[0.06] * (PATIENCE - 1)) == "learning"
    assert spreads(0.4, *[0.15] * PATIENCE) == "learning"


def test_features_that_were_close_from_the_start_are_none() -> None:
    assert spreads(0.07, *[0.06] * PATIENCE) == "learning"
    assert spreads(0.07, *[0.03] * PATIENCE) == "collapsed to one output"


def test_a_collapse_that_swings_is_called_by_what_it_is_now() -> None:
    reader = Reader(warm_up=0.1)
    row = {"loss": 1.0, "entropy_max": 4.0, "feature_spread": 0.3, "effective_rank": 3.0}
    one, uniform = {"entropy": 0.1, "outputs_in_use": 1.2}, {"entropy": 3.99, "outputs_in_use": 50.0}
    names = [reader.read(row | kind, 0.5).name for kind in (one, one, uniform, one, uniform, one)]
    assert names[-3:] == ["learning", "collapsed to uniform", "collapsed to one output"]


ROW = {"loss": 1.0, "entropy": 1.0, "entropy_max": 4.0, "outputs_in_use": 20.0}
ROW |= {"feature_spread": 0.4, "effective_rank": 3.0}


def test_signs_of_a_collapse_are_counted_while_they_gather() -> None:
    reader = Reader(warm_up=0.1)
    sharp = {"entropy": 1e-7, "outputs_in_use": 1.0}
    kinds = [{}, sharp, sharp, {}, *[sharp] * PATIENCE]
    seen = [reader.read(ROW | kind, 0.5) for kind in kinds]
    assert [one.headline for one in seen] == [
        "learning",
        "signs of collapse to one output (1 of 5 rows)",
        "signs of collapse to one output (2 of 5 rows)",
        "learning",
        *(f"signs of collapse to one output ({i} of 5 rows)" for i in (1, 2, 3, 4)),
        "collapsed to one output",
    ]
    assert [one.doubtful for one in seen] == [False, True, True, False, True, True, True, True, False]
    assert [one.collapsed for one in seen] == [False] * 8 + [True]
    assert "target entropy 1e-07 of at most 4.00, 1.0 outputs in use, feature spread 0.40" in seen[1].sentence


def test_signs_of_a_collapse_say_which_it_is_now() -> None:
    reader = Reader(warm_up=0.1)
    one, uniform = {"outputs_in_use": 1.2}, {"entropy": 3.99}
    headlines = [reader.read(ROW | kind, 0.5).headline for kind in (one, uniform, {"feature_spread": 0.01})]
    assert headlines == [
        "signs of collapse to one output (1 of 5 rows)",
        "signs of collapse to uniform (2 of 5 rows)",
        "signs of collapse to one output (3 of 5 rows)",
    ]


def test_signs_of_a_collapse_are_told_while_warming_up() -> None:
    reader = Reader(warm_up=0.1)
    seen = [reader.read(ROW | {"outputs_in_use": 1.0}, 0.05) for _ in range(PATIENCE + 1)]
    assert [one.name for one in seen] == ["warming up"] * 6
    assert (
        seen[2].headline == "warming up until 10% of the run, signs of collapse to one output (3 of 5 rows)"
    )
    assert all(one.doubtful and one.tone == "doubtful" for one in seen)
    assert reader.read(ROW | {"outputs_in_use": 1.0}, 0.1).name == "collapsed to one output"


@pytest.mark.parametrize(
    ("row", "few"),
    [
        ({"entropy": 1e-7, "outputs_in_use": 2.0}, True),  # two clusters, told apart without doubt
        ({"entropy": 1e-7, "outputs_in_use": 20.0}, False),
        ({"entropy": 1.0, "outputs_in_use": 2.0}, False),
        ({"entropy": 0.0, "outputs_in_use": 2.0, "entropy_max": math.log(10)}, False),  # labels of 10 classes
        ({"entropy": 0.0, "outputs_in_use": 3.9, "entropy_max": math.log(64)}, True),
    ],
)
def test_sure_targets_on_few_of_many_outputs_are_in_doubt(row: dict[str, float], few: bool) -> None:
    reader = Reader(warm_up=0.1)
    seen = [reader.read(ROW | {"entropy_max": math.log(1024)} | row, 0.5) for _ in range(PATIENCE + 1)]
    assert [(one.name, one.doubtful) for one in seen] == [("learning", few)] * 6  # but no collapse
    assert ("few outputs are in use" in seen[-1].headline) == few


def scored(*rows: dict[str, float], floors: dict[str, dict[str, float]] | None = None) -> Verdict:
    """The verdict after an evaluation before training, and after each of these rows."""
    reader = Reader(warm_up=0.1, floors=floors)
    reader.read(rows[0], 0.0)
    for row in rows[1:]:
        reader.read(ROW | row, 0.5)
    return reader.verdict


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"knn.20nn": 0.25}, {}], "learning: target"),
        ([{"knn.20nn": 0.25}, {"knn.20nn": 0.26}], "learning; 20-NN above untrained: 0.2600, 0.2500 untrained; target"),
        ([{"knn.20nn": 0.25}, {"knn.20nn": 0.25}, {}], "learning, but no better than untrained yet: knn.20nn 0.2500, 0.2500 untrained; target"),
        ([{"knn.20nn": 0.25}, {"knn.20nn": 0.3}, {"knn.20nn": 0.2}], "learning, but no better than untrained yet: knn.20nn 0.2000, 0.2500 untrained; target"),
        # Lower may be better there, or better and worse may not be known.
        ([{"invariance.blur": 0.25, "spectrum.rankme": 9.0}, {"invariance.blur": 0.2, "spectrum.rankme": 8.0}], "learning: target"),
    ],
)  # fmt: skip
def test_learning_says_whether_the_score_rose(rows: list[dict[str, float]], sentence: str) -> None:
    verdict = scored(*rows)
    assert verdict.name == "learning"
    assert verdict.sentence.startswith(sentence)
    assert verdict.doubtful == ("but" in sentence)


FLOORS = {"knn.20nn": {"chance": 0.1, "raw pixels": 0.39}, "knn.10nn": {"chance": 0.1, "raw pixels": 0.0}}


@pytest.mark.parametrize(
    ("before", "after", "headline", "tone"),
    [
        (0.25, 0.57, "learning; 20-NN above untrained and raw pixels", "good"),
        (0.25, 0.39, "learning; 20-NN above untrained, below raw pixels", "good"),
        (0.05, 0.09, "learning; 20-NN above untrained, below chance and raw pixels", "good"),
        (0.45, 0.45, "learning, but no better than untrained yet", "doubtful"),
        (0.45, 0.40, "learning, but no better than untrained yet", "doubtful"),
    ],
)
def test_the_score_is_compared_with_its_floors(before: float, after: float, headline: str, tone: str) -> None:
    verdict = scored(
        {"knn.10nn": 0.9, "knn.20nn": before}, {"knn.10nn": 0.1, "knn.20nn": after}, floors=FLOORS
    )
    assert (verdict.headline, verdict.tone) == (headline, tone)
    assert (
        f"{after:.4f}, {before:.4f} untrained, 0.1000 chance, 0.3900 raw pixels; target" in verdict.sentence
    )


def test_other_accuracies_have_their_own_name_and_floors() -> None:
    rows = {"logistic.top1": 0.3}, {"logistic.top1": 0.4}
    verdict = scored(*rows, floors={"logistic.top1": {"raw pixels": 0.35}})
    assert verdict.headline == "learning; logistic.top1 above untrained and raw pixels"


def test_only_a_score_above_that_before_training_is_good() -> None:
    assert scored({"knn.20nn": 0.25}, {}).tone == "waiting"  # no score since
    assert scored({}, {}).tone == "waiting"  # no evaluator
    assert scored({"knn.20nn": 0.25}, {"knn.20nn": 0.26}, {"outputs_in_use": 1.0}).tone == "doubtful"
    rows = [{"outputs_in_use": 1.0}] * PATIENCE
    assert scored({"knn.20nn": 0.25}, {"knn.20nn": 0.26}, *rows).tone == "bad"


def test_numbers_that_are_not_finite_are_not_called_learning() -> None:
    verdict = Reader(warm_up=0.1).read(ROW | {"loss": math.nan}, 0.5)
    assert (verdict.headline, verdict.doubtful) == ("not finite", True)
    assert "loss nan" in verdict.sentence
