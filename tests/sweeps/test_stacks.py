"""Trials that are trained together end as they would alone, each in its own folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_lab.cli import app as cli
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import read_status
from dino_lab.training.stacked.planning import form, reason_to_be_alone

TEXT = """\
base: tiny.yaml
metric: knn.5nn
set: {backbone.drop_path: 0, train.epochs: 2, optim.lr: 1e-4}
grid: {targets.momentum: [0, 0.9]}
seeds: 2
stack: 4
"""


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path) -> Callable[..., int]:
    file = tmp_path / "s.yaml"

    def run(*settings: str, runs: str = "runs", text: str = TEXT) -> int:
        file.write_text(text)
        given = [word for setting in settings for word in ("--set", setting)]
        return cli.main(["sweep", str(file), "--runs", str(tmp_path / runs), "--executor", "inline", *given])

    return run


def folders(runs: Path) -> dict[str, RunFolder]:
    return {path.name: RunFolder(path) for path in sorted((runs / "tiny").iterdir())}


def test_a_stacked_trial_leaves_what_it_leaves_alone(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("stack=1", runs="alone") == 0
    assert "a stack" not in capsys.readouterr().out
    assert sweep("stack=3") == 0
    out = capsys.readouterr().out
    assert (
        "4 trials; 1 stack(s) at once, 1 core(s) each\n4 trials in 2 stack(s) of at most 3\n  on a CPU" in out
    )
    assert "a stack and 0:" in out
    stacked, alone = folders(tmp_path / "runs"), folders(tmp_path / "alone")
    assert stacked.keys() == alone.keys()
    assert len(stacked) == 4
    for name, folder in stacked.items():
        other = alone[name]
        assert {path.name for path in folder.path.iterdir() if not path.name.startswith("events")} == {
            path.name for path in other.path.iterdir() if not path.name.startswith("events")
        }
        for row, wanted in zip(folder.rows(), other.rows(), strict=True):
            assert row.keys() == wanted.keys()
            same = ("step", "loss", "entropy", "gradient_norm", "feature_spread", "lr")
            for key in (key for key in same if key in wanted):
                assert row[key] == pytest.approx(wanted[key], rel=0.01), key
        # The checkpoint holds this run's tensors, and not those of the others.
        size, wanted_size = ((f.path / "last.pt").stat().st_size for f in (folder, other))
        assert size == pytest.approx(wanted_size, rel=0.01)
        assert read_status(folder.path).state == "finished"
    trained_with = [
        json.loads((f.path / "env.json").read_text()).get("trained_with") for f in stacked.values()
    ]
    assert sorted(len(others or ()) for others in trained_with) == [0, 2, 2, 2]
    assert all("trained_with" not in (f.path / "env.json").read_text() for f in alone.values())


def test_a_stopped_stack_goes_on_as_if_it_had_not_been(
    sweep: Callable[..., int],
    tmp_path: Path,
    interrupted_at: Callable[[int], AbstractContextManager[None]],
) -> None:
    assert sweep(runs="whole") == 0
    with interrupted_at(4):
        assert sweep() == 130
    assert [f.rows()[-1]["step"] for f in folders(tmp_path / "runs").values()] == [4] * 4
    assert sweep() == 0
    whole = folders(tmp_path / "whole")
    for name, folder in folders(tmp_path / "runs").items():
        one, other = (torch.load(f.path / "last.pt", weights_only=True) for f in (folder, whole[name]))
        assert one["step"] == 8
        assert all(torch.equal(one["student"][key], other["student"][key]) for key in one["student"])


def test_one_that_fails_and_one_that_collapses_leave_the_others_alone(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = """\
base: tiny.yaml
metric: knn.5nn
set: {backbone.drop_path: 0, train: {epochs: 6, batch_size: 24, log_every: 1, on_collapse: stop}}
variants:
  good: {}
  hot: {targets.temperature: 50}
  wild: {optim: {name: sgd, lr: 1.0e+30}, augment.local_views: 2}
  other: {seed: 5}
stack: 4
"""
    assert sweep(text=text) == 1
    out = capsys.readouterr().out
    assert "4 trials in 1 stack(s) of at most 4" in out
    assert "good seed 0: finished" in out
    assert "hot seed 0: collapsed" in out
    assert "wild seed 0: failed: the loss is" in out
    steps = sorted(folder.rows()[-1]["step"] for folder in folders(tmp_path / "runs").values())
    assert steps[0] < steps[1] < 24 == steps[2] == steps[3]


def test_an_error_of_one_is_its_own(
    sweep: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep("train.epochs=1", "seeds=1", "stack=1") == 0
    for folder in folders(tmp_path / "runs").values():
        (folder.path / "status.json").unlink()
    first, second = folders(tmp_path / "runs").values()
    (first.path / "last.pt").write_bytes(b"")
    capsys.readouterr()
    assert sweep("train.epochs=1", "seeds=1") == 1
    out = capsys.readouterr().out
    assert "not a whole checkpoint" in out
    assert read_status(first.path).state == "failed"
    assert read_status(second.path).state == "finished"


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("backbone.drop_path=0.1", "its networks draw random numbers (dropout or stochastic depth)"),
        ("train.accumulate=2", "train.accumulate is above 1"),
        ("train.compile=true", "train.compile is true"),
        ("train.gradient_checkpointing=true", "train.gradient_checkpointing is true"),
    ],
)
def test_what_stays_alone_says_why(tiny_spec: Callable[..., Any], setting: str, reason: str) -> None:
    assert reason_to_be_alone(tiny_spec("backbone.drop_path=0", setting), registry) == reason


@pytest.mark.parametrize(
    "backbone",
    [
        "{name: vit, patch: 4}",
        "{name: timm, model: resnet18, stem: small}",
        "{name: timm, model: convnext_atto}",
    ],
)
def test_common_backbones_can_be_stacked(tiny_spec: Callable[..., Any], backbone: str) -> None:
    spec = tiny_spec(f"backbone={backbone}", "augment={name: two_view, size: 32}", "head.batch_norm=true")
    assert reason_to_be_alone(spec, registry) is None


def test_what_may_differ_and_what_may_not(tiny_spec: Callable[..., Any]) -> None:
    base = form(tiny_spec(), registry)
    for setting in ("seed=3", "targets={name: softmax}", "optim.lr=1", "augment.global_scale=[0.5, 1.0]"):
        assert form(tiny_spec(setting), registry) == base
    for setting in ("head.dim=16", "augment.local_views=3", "train.batch_size=12", "backbone.depth=1"):
        assert form(tiny_spec(setting), registry) != base


def test_arms_of_other_shapes_are_told(sweep: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT.replace("targets.momentum: [0, 0.9]", "backbone.drop_path: [0, 0.1], head.dim: [32, 16]")
    text = text.replace("backbone.drop_path: 0, ", "")
    assert sweep("train.epochs=1", text=text + "#\n") == 0
    out = capsys.readouterr().out
    assert "8 trials in 6 stack(s) of at most 4" in out
    assert "4 of them alone: its networks draw random numbers (dropout or stochastic depth)" in out


@pytest.mark.parametrize("other", ["scheduler: {name: asha}", "search: {name: optuna, samples: 3}"])
def test_no_stack_with_trials_that_are_not_known(
    sweep: Callable[..., int], capsys: pytest.CaptureFixture[str], other: str
) -> None:
    space = "space: {optim.lr: {uniform: [0.1, 1]}}"
    text = f"base: tiny.yaml\nmetric: knn.5nn\nstack: 2\n{other}\n{space if 'search' in other else 'grid: {seed: [1, 2]}'}\n"
    assert sweep(text=text) == 2
    assert "stack is for trials that are known and run to their end" in capsys.readouterr().err
