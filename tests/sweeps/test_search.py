"""Points that Optuna chooses: what it is told, what is kept, and how a search goes on."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dino_lab.cli import app as cli
from dino_lab.errors import SpecError, UserError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, write_status
from dino_lab.runs.study import read_study
from dino_lab.sweeps.plan.optuna_search import FILE, OptunaSearch, check_optuna
from dino_lab.sweeps.plan.plan import Plan, PlannedTrial, load_plan

SPACE = "space: {optim.lr: {log_uniform: [1.0e-4, 1.0]}}\n"
MIXED = """\
space:
  targets: {choice: [{name: center}, {name: softmax}]}
  targets.momentum: {uniform: [0.2, 0.8], when: {targets.name: center}}
"""
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="optuna is not installed"
)


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Callable[..., Plan]:
    def make(space: str, samples: int, more: str = "") -> Plan:
        file = tmp_path / "s.yaml"
        search = f"search: {{name: optuna, samples: {samples}}}\n"
        file.write_text(f"base: tiny.yaml\nmetric: loss\nmode: min\n{search}{space}{more}")
        return load_plan(file, (), registry, runs=tmp_path / "runs")

    return make


def finish(trial: PlannedTrial, runs: Path, loss: float) -> None:
    """Leave what a run would."""
    folder = RunFolder(trial.folder(runs))
    write_status(folder.path, Status("collapsed", 12, 12))
    folder.append_row({"step": 12, "epoch": 3.0, "loss": loss})


def distance(trial: PlannedTrial) -> float:
    """A loss that is least at a rate of 0.01."""
    import math

    return abs(math.log10(trial.spec.optim.lr.start) + 2)


@needs_optuna
def test_it_finds_what_is_best(plan: Callable[..., Plan], tmp_path: Path) -> None:
    search = OptunaSearch(plan(SPACE, 30), registry, tmp_path)
    distances = []
    while (trial := search.next()) is not None:
        distances.append(distance(trial))
        finish(trial, tmp_path, distances[-1])
        search.over(trial.key)
    assert len(distances) == 30
    # Of 20 that are drawn at random the mean distance would be about 1.
    assert sum(distances[-10:]) / 10 < 0.5
    assert search.left == 0
    assert [len(arm.folders) for arm in search.study.arms] == [1] * 31


@needs_optuna
def test_it_goes_on_where_it_was_stopped(plan: Callable[..., Plan], tmp_path: Path) -> None:
    first = OptunaSearch(plan(SPACE, 6), registry, tmp_path)
    trials = [first.next() for _ in range(3)]
    for trial in trials[:2]:
        assert trial is not None
        finish(trial, tmp_path, distance(trial))
        first.over(trial.key)
    # The third was running when everything was killed.
    file = plan(SPACE, 6).folder(tmp_path) / FILE
    assert plan(SPACE, 8).folder(tmp_path) == file.parent  # more samples continue it
    again = OptunaSearch(plan(SPACE, 8), registry, tmp_path)
    assert again.left == 6
    assert [arm.label for arm in again.study.arms[1:]] == [t.label for t in trials if t is not None]
    assert again.next() == trials[2]
    asked = [trial.key for trial in trials if trial is not None]
    while (trial := again.next()) is not None:
        assert trial.key not in asked  # a new draw is none of those before
        asked.append(trial.key)
    assert len(asked) == 8
    assert [len(json.loads(line)) for line in file.read_text().splitlines()] == [1] * 8


@needs_optuna
def test_conditions_hold_and_what_is_the_same_runs_once(plan: Callable[..., Plan], tmp_path: Path) -> None:
    search = OptunaSearch(plan(MIXED, 12), registry, tmp_path)
    trials = []
    while (trial := search.next()) is not None:
        trials.append(trial)
        finish(trial, tmp_path, 1.0)
        search.over(trial.key)
    plain = [trial for trial in trials if trial.spec.targets.name == "softmax"]
    assert len(plain) == 1  # though it was asked for again
    assert 1 < len(trials) < 12
    assert all(0.2 <= trial.spec.targets.momentum.start <= 0.8 for trial in trials if trial not in plain)  # type: ignore[attr-defined]


@needs_optuna
def test_a_whole_search(
    plan: Callable[..., Plan], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(SPACE, 3)
    runs = tmp_path / "runs"
    asked = ["sweep", str(tmp_path / "s.yaml"), "--runs", str(runs), "--executor", "inline"]
    asked += ["--set", "train.epochs=1"]
    assert cli.main([*asked, "--set", "search.samples=2"]) == 0
    assert "1 trials and 2 that optuna chooses" in capsys.readouterr().out
    assert cli.main(asked) == 0
    out = capsys.readouterr().out
    assert "1 trials, 1 of them done before and 1 that optuna chooses" in out
    assert "4 of 4 trials" in out
    (folder,) = (runs / "_sweeps" / "s").iterdir()
    assert len(read_study(folder).arms) == 4
    assert cli.main(["best", str(folder), "--copy-to", str(tmp_path / "best.yaml")]) == 0


def test_without_optuna_it_is_one_line(
    plan: Callable[..., Plan],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan(SPACE, 3)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="optuna is not installed"):
        check_optuna()
    assert cli.main(["sweep", str(tmp_path / "s.yaml"), "--executor", "inline"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("space", "more", "words"),
    [
        (SPACE, "grid: {seed: [1]}\n", "search chooses points of space alone"),
        (SPACE, "seeds: 2\n", "search runs each point once"),
        ("", "grid: {seed: [1]}\n", "search how many are chosen; one needs the other"),
        ("space: {optim.lr: {uniform: [-1, 1]}}\n", "", "optim.lr: must be at least 0"),
        ("space: {loss: {choice: [{name: mse}, {name: mes}]}}\n", "", "no loss is called 'mes'"),
    ],
)
def test_mistakes_are_seen_before_the_start(
    plan: Callable[..., Plan], space: str, more: str, words: str
) -> None:
    with pytest.raises(SpecError) as caught:
        plan(space, 3, more)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
