"""Main effects and interactions against textbook sums of squares, and what is said of them."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dino_lab.reports.study.effects import EFFECT_HEADERS, effects_of, f_test
from dino_lab.reports.study.figures import draw_figures
from dino_lab.reports.study.files import write_study
from dino_lab.reports.study.results import read_results
from dino_lab.runs.study import Arm, Study

MakeArm = Callable[..., Arm]
MakeStudy = Callable[..., Study]
MakeGrid = Callable[..., Study]


def sums_of_squares(y: np.ndarray) -> tuple[float, float]:
    """F of both main effects' interaction, and of the first factor, by the textbook, each with its own error."""
    n, a, b = y.shape
    grand = y.mean()
    of_a, of_b, of_s = y.mean((0, 2)) - grand, y.mean((0, 1)) - grand, y.mean((1, 2)) - grand
    ab = sa = error_ab = error_a = 0.0
    for i, j in itertools.product(range(a), range(b)):
        ab += n * (y[:, i, j].mean() - grand - of_a[i] - of_b[j]) ** 2
    for i in range(a):
        sa += n * b * of_a[i] ** 2
    for s, i in itertools.product(range(n), range(a)):
        error_a += b * (y[s, i].mean() - grand - of_a[i] - of_s[s]) ** 2
    for s, i, j in itertools.product(range(n), range(a), range(b)):
        residual = (
            y[s, i, j]
            - y[s, i].mean()
            - y[s, :, j].mean()
            - y[:, i, j].mean()
            + y[s].mean()
            + y[:, i].mean()
            + y[:, :, j].mean()
            - grand
        )
        error_ab += residual**2
    q = (a - 1) * (b - 1)
    interaction = (ab / q) / (error_ab / (q * (n - 1)))
    return interaction, (sa / (a - 1)) / (error_a / ((a - 1) * (n - 1)))


def epsilon(y: np.ndarray) -> float:
    """Greenhouse and Geisser's correction, by its formula in the covariances of k levels [seeds, k]."""
    covariance = np.cov(y, rowvar=False)
    k = len(covariance)
    diagonal, whole, rows = np.diag(covariance).mean(), covariance.mean(), covariance.mean(1)
    below = (k - 1) * ((covariance**2).sum() - 2 * k * (rows**2).sum() + k**2 * whole**2)
    return float(k**2 * (diagonal - whole) ** 2 / below)


@pytest.mark.parametrize("shape", [(5, 2, 2), (5, 3, 4), (3, 4, 2), (8, 3, 3)])
def test_f_is_that_of_the_textbook(shape: tuple[int, ...]) -> None:
    y = np.random.default_rng(0).normal(size=shape) + np.arange(shape[2])
    interaction, first = sums_of_squares(y)
    assert f_test(y).statistic == pytest.approx(interaction)
    found = f_test(y.mean(2))
    assert found.statistic == pytest.approx(first)
    correction = epsilon(y.mean(2))
    assert found.between == pytest.approx(correction * (shape[1] - 1))
    assert found.within == pytest.approx(correction * (shape[1] - 1) * (shape[0] - 1))
    assert found.p == pytest.approx(stats.f.sf(first, found.between, found.within))


def test_two_levels_are_a_paired_t_test() -> None:
    y = np.random.default_rng(1).normal(size=(6, 2, 2))
    change = (y[:, 1, 1] - y[:, 0, 1]) - (y[:, 1, 0] - y[:, 0, 0])
    t, p = stats.ttest_1samp(change, 0.0)
    found = f_test(y)
    assert (found.between, found.within) == (1, 5)
    assert (found.statistic, found.p) == pytest.approx((t**2, p))


def test_without_an_effect_one_in_twenty_is_seen() -> None:
    source = np.random.default_rng(2)
    seen = [f_test(source.normal(size=(5, 3))).p < 0.05 for _ in range(1000)]
    assert 0.02 < sum(seen) / len(seen) < 0.06  # the correction errs on the safe side


@pytest.mark.parametrize(("step", "p"), [(0.0, 1.0), (1.0, 0.0)])
def test_seeds_that_all_say_the_same_are_certain(step: float, p: float) -> None:
    assert f_test(np.tile(step * np.arange(3.0), (4, 1))).p == p


NOISE = (-0.01, 0.0, 0.01, 0.005, -0.005)
RIPPLE = {(0.02, 0): (1, -1, 0, 1, -1), (0.02, 0.9): (0, 1, -1, -1, 1), (0.04, 0): (-1, 0, 1, 0, 0)}


@pytest.fixture
def grid(make_arm: MakeArm, make_study: MakeStudy) -> MakeGrid:
    """Two temperatures by two momenta, five seeds; `score` of temperature and momentum."""

    def make(score: Callable[[float, float], float], ripple: float = 0.002, **changes: object) -> Study:
        arms = []
        for t, m in ((0.04, 0.9), (0.04, 0), (0.02, 0.9), (0.02, 0)):
            shares = RIPPLE.get((t, m), (0,) * 5)
            scores = [score(t, m) + NOISE[i] + ripple * shares[i] for i in range(5)]
            settings = {"targets.temperature": t, "targets.momentum": m}
            arms.append(make_arm(f"t={t} m={m}", *scores, settings=settings))
        return make_study(arms, **changes)

    return make


def told(study: Study) -> tuple[list[list[str]], list[str]]:
    found = effects_of(study, read_results(study))
    return found.rows(), found.sentences()


def test_an_interaction_is_told_with_its_change(grid: MakeGrid) -> None:
    """The effect of temperature is -0.1 at momentum 0.9, and -0.02 at momentum 0."""
    rows, said = told(grid(lambda t, m: 0.5 - (0.1 if m else 0.02) * (t == 0.02)))
    assert [row[0] for row in rows] == [
        "temperature: 0.02 - 0.04",
        "momentum: 0 - 0.9",
        "temperature: 0.02 - 0.04; momentum: 0 - 0.9",
    ]
    assert [float(row[1].split()[0]) for row in rows] == pytest.approx([-0.06, 0.04, 0.08])
    assert [row[2] for row in rows] == ["worse", "better", "differs"]
    # Ripples, in units of 0.002, of temperature at momentum 0 minus the same at momentum 0.9: 2 -2 0 2 -2.
    change = 0.08 + 0.002 * np.array([2 - 0, -1 - 0 - 1, 0 - 1 + 1, 1 - 0 + 1, -1 - 0 - 1])
    half = stats.t.ppf(0.975, 4) * change.std(ddof=1) / np.sqrt(5)
    assert rows[2][1] == f"{change.mean():+.4f} ± {half:.4f}"
    (line,) = said
    assert line.startswith(
        "does the effect of temperature depend on momentum, and the other way round? yes: F(1, 4) = "
    )
    assert f"the largest change is {rows[2][1]}" in line


def test_effects_that_add_up_do_not_depend_on_each_other(grid: MakeGrid) -> None:
    rows, said = told(grid(lambda t, m: 0.5 - 0.1 * (t == 0.02) - 0.004 * (m == 0)))
    assert rows[2][2] == "no difference seen"
    assert said[0].startswith(
        "does the effect of temperature depend on momentum? no: it changes by at most 0.00"
    )
    assert "less than half of its largest effect, 0.1000" in said[0]
    # The effect of momentum is so small that a change of it cannot be ruled out.
    assert said[1].startswith(
        "does the effect of momentum depend on temperature? cannot tell: it may change by"
    )
    assert "with 80 % power so many seeds show a change of 0.00" in said[1]


def test_noise_is_not_called_independence(grid: MakeGrid) -> None:
    _, said = told(grid(lambda t, m: 0.5, ripple=0.05))
    assert len(said) == 2
    assert all("? cannot tell: " in line for line in said)


def test_a_grid_of_three_axes_has_every_pair(make_arm: MakeArm, make_study: MakeStudy) -> None:
    levels = ([1, 2, 3], ["x", "y"], [{"name": "mse"}, {"name": "cross_entropy"}])
    arms = [
        make_arm(
            f"{a}{b}{c['name']}",
            *(0.1 * a + 0.01 * (b == "y") + n * (1 + 0.1 * a) for n in NOISE),
            settings={"a": a, "b": b, "loss": c},
        )
        for a, b, c in itertools.product(*levels)
    ]
    rows, said = told(make_study(arms))
    names = [row[0] for row in rows]
    assert names == [
        *("a", "a: 2 - 1", "a: 3 - 1", "b: y - x", "loss: cross_entropy - mse"),
        *("a x b", "a: 2 - 1; b: y - x", "a: 3 - 1; b: y - x"),
        *("a x loss", "a: 2 - 1; loss: cross_entropy - mse", "a: 3 - 1; loss: cross_entropy - mse"),
        "b: y - x; loss: cross_entropy - mse",
    ]
    assert [float(row[1].split()[0]) for row in rows[1:5]] == pytest.approx([0.1, 0.2, 0.01, 0.0])
    assert len(said) == 6


@pytest.mark.parametrize(
    ("seeds", "gone", "said"),
    [
        (2, [], None),
        (1, [], "effects of the axes: one seed, so that there are no intervals"),
        (2, ["nan"], "effects of the axes: not known while these have no score: b0"),
        (2, ["b0"], "effects of the axes: not known while these have no score: b0"),
    ],
)
def test_what_is_missing_is_told(
    seeds: int, gone: list[str], said: str | None, make_arm: MakeArm, make_study: MakeStudy
) -> None:
    from dino_lab.runs.status import Status

    nothing = float("nan") if gone == ["nan"] else Status("failed")
    arms = [
        make_arm(
            f"{a}{b}",
            *(nothing if gone and (a, b) == ("b", 0) else 0.1 * i for i in range(seeds)),
            settings={"a": a, "b": b},
        )
        for a, b in itertools.product("ab", (0, 1))
    ]
    study = make_study(arms)
    found = effects_of(study, read_results(study))
    assert bool(found.effects) == (said is None)
    assert said is None or found.notes() == [said]


def test_what_is_no_grid_has_no_effects(grid: MakeGrid, make_arm: MakeArm, make_study: MakeStudy) -> None:
    whole = grid(lambda t, m: t)
    for arms in (whole.arms[:3], whole.arms[:2]):
        found = effects_of(study := make_study(arms), read_results(study))
        assert not found.effects
        assert found.notes() == []
    # A baseline beside the grid is no part of it.
    beside = make_arm("beside", *NOISE, settings={"targets.temperature": 0.5})
    rows, _ = told(make_study([beside, *whole.arms]))
    assert len(rows) == 3
    beside = make_arm("off", *NOISE, settings={"targets.temperature": 0.5, "targets.momentum": 0.5})
    rows, _ = told(make_study([beside, *whole.arms]))
    assert len(rows) == 3


def test_effects_are_in_the_files_and_drawn(grid: MakeGrid, tmp_path: Path) -> None:
    study = grid(lambda t, m: 0.5 - (0.1 if m else 0.02) * (t == 0.02))
    write_study(study, tmp_path / "out")
    text = (tmp_path / "out" / "table.md").read_text()
    assert f"## Main effects and interactions\n\n| {' | '.join(EFFECT_HEADERS)} |" in text
    assert "| temperature: 0.02 - 0.04; momentum: 0 - 0.9 | +0.0800 ± " in text
    rows = list(csv.DictReader((tmp_path / "out" / "effects.csv").read_text().splitlines()))
    assert [(row["axis"], row["by"], row["axis_depends"]) for row in rows] == [
        ("targets.temperature", "", ""),
        ("targets.momentum", "", ""),
        ("targets.temperature", "targets.momentum", "yes"),
    ]
    assert float(rows[2]["difference"]) == pytest.approx(0.08)
    figure = dict(draw_figures(study, read_results(study)))["interaction"]
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.02", "0.04"]
    lines = {bars.get_label(): bars.lines[0].get_ydata() for bars in panel.containers}
    assert list(lines) == ["0", "0.9"]
    assert list(lines["0.9"]) == pytest.approx([0.4, 0.5])
    assert list(lines["0"]) == pytest.approx([0.48, 0.5])


def test_one_seed_is_drawn_without_bars(grid: MakeGrid, make_study: MakeStudy) -> None:
    arms = [Arm(arm.label, arm.settings, {0: arm.folders[0]}) for arm in grid(lambda t, m: t).arms]
    study = make_study(arms)
    (panel,) = dict(draw_figures(study, read_results(study)))["interaction"].axes
    assert [len(bars.lines[2][0].get_segments()) for bars in panel.containers] == [2, 2]


def test_bars_leave_out_what_the_seeds_share(grid: MakeGrid) -> None:
    study = grid(lambda t, m: 0.5, ripple=0.0)
    (panel,) = dict(draw_figures(study, read_results(study)))["interaction"].axes
    for bars in panel.containers:
        for low, high in bars.lines[2][0].get_segments():
            assert high[1] - low[1] == pytest.approx(0.0, abs=1e-9)
