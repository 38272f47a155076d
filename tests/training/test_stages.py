"""Specs of several stages, alone and in sweeps, and the verbs that go on from a run."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_lab.building.seeding import crop_generator
from dino_lab.cli.app import main
from dino_lab.errors import SpecError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.runs.status import read_status
from dino_lab.spec.file import Document, dump_yaml, load, load_text, parent_of, with_seed
from dino_lab.sweeps.plan.plan import load_plan
from dino_lab.sweeps.run import run_sweep
from dino_lab.training import trainer
from dino_lab.training.build import build
from dino_lab.training.stacked import trainer as stacked_trainer

SHORT = "train: {epochs: 1, batch_size: 48, log_every: 2}\nname: tiny\n"  # 2 steps
STAGES = """\
stages:
- train: {epochs: 2}
  optim: {lr: 1e-4}
"""


@pytest.fixture
def staged(tiny_text: str, tmp_path: Path) -> Callable[..., Document]:
    """The tiny spec of one epoch with stages, and settings."""

    def make(stages: str = STAGES, *settings: str) -> Document:
        lines = [line for line in tiny_text.splitlines() if not line.startswith(("train:", "name:"))]
        file = tmp_path / "staged.yaml"
        file.write_text("\n".join([*lines, SHORT + stages]))
        return load(file, settings)

    return make


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Steps that were made, by the hash of the run."""
    counted: Counter[str] = Counter()
    alone, stacked = trainer.train, stacked_trainer.train_each

    def train(run: Any, start: int) -> Any:
        for row in alone(run, start):
            counted[run.spec.hash] += 1
            yield row

    def train_each(runs: Any, start: int) -> Any:
        for rows in stacked(runs, start):
            counted.update(run.spec.hash for run in runs)
            yield rows

    monkeypatch.setattr(trainer, "train", train)
    monkeypatch.setattr(stacked_trainer, "train_each", train_each)
    return counted


def test_the_first_stage_is_the_spec_without_stages(staged: Callable) -> None:
    first, second = staged().stages
    assert first.spec == staged("").spec
    assert (second.spec.train.epochs, second.spec.optim.lr.start, second.spec.optim.lr.end) == (2, 1e-4, 1e-4)
    assert second.spec.optim.name == "adamw"
    assert second.spec.train.batch_size == 48
    assert second.spec.after.run == first.spec.hash
    assert (second.spec.epochs_before, second.spec.begins_trained) == (1, True)
    again = load_text(dump_yaml(second.spec), "again.yaml").spec
    assert (again, again.hash) == (second.spec, second.spec.hash)
    assert parent_of(again, registry) == first.spec


def test_the_hash_of_a_stage_contains_that_of_the_one_before(staged: Callable) -> None:
    hashes = {
        staged(STAGES, *settings).spec.hash
        for settings in ([], ["seed=1"], ["targets.momentum=0.5"], ["stages.0.optim.lr=2e-4"])
    }
    assert len(hashes) == 4
    assert staged(STAGES, "name=other").spec.hash in hashes
    assert staged().spec.hash != staged("", "train.epochs=2", "optim.lr=1e-4").spec.hash
    three = staged(STAGES + "- targets: {name: softmax}\n").stages
    assert [one.spec.epochs_before for one in three] == [0, 1, 3]
    assert (three[2].spec.targets.name, three[2].spec.optim.lr.start) == ("softmax", 1e-4)


def test_a_stage_begins_with_the_state_of_the_one_before(
    staged: Callable, execute: Callable, trained: Counter[str], tmp_path: Path
) -> None:
    first, second = (one.spec for one in staged().stages)
    outcome = execute(second)
    assert (outcome.status, outcome.step) == ("finished", 4)
    assert trained == {first.hash: 2, second.hash: 4}
    before, rows = (RunFolder(folder_of(tmp_path / "runs", one).path).rows() for one in (first, second))
    assert (rows[0]["step"], rows[0]["knn.5nn"]) == (0, before[-1]["knn.5nn"])
    alone = execute(staged("", "train.epochs=2", "optim.lr=1e-4").spec, runs=tmp_path / "alone")
    assert RunFolder(alone.folder).rows()[1]["loss"] != rows[1]["loss"]
    shutil.rmtree(folder_of(tmp_path / "runs", first).path)
    assert execute(second).status == "already finished"
    assert trained[first.hash] == 2


def test_random_numbers_go_on_from_the_stage_before(staged: Callable) -> None:
    run = build(staged().spec, registry, torch.device("cpu"), first_weights=False)
    assert run.steps_per_epoch == 2
    assert torch.equal(run.generator(1).get_state(), crop_generator(0, 3).get_state())
    assert not torch.equal(run.generator(1).get_state(), crop_generator(0, 1).get_state())


def test_larger_crops_in_the_second_stage(staged: Callable, execute: Callable) -> None:
    spec = staged("stages: [{augment: {global_size: 24}}]\n").spec
    outcome = execute(spec)
    assert outcome.status == "finished"
    said = RunFolder(outcome.folder).environment()["init"]
    line = "position embeddings of 4 x 4 patches are interpolated to 6 x 6"
    assert f"student: {line}" in said
    assert f"teacher: {line}" in said
    assert "optimizer: 1 of " in said[-1]


def test_a_stage_that_is_stopped_goes_on(staged: Callable, execute: Callable, trained: Counter[str]) -> None:
    first, second = (one.spec for one in staged().stages)
    outcome = execute(second, stop=lambda: trained[first.hash] == 1)
    assert (outcome.status, outcome.step) == ("interrupted", 1)
    status = read_status(folder_of(outcome.folder.parents[1], second).path)
    assert status.state == "interrupted"
    assert first.hash in status.reason
    steps = iter(range(100))
    assert execute(second, stop=lambda: next(steps) >= 2).step == 3
    assert execute(second).status == "finished"
    assert trained == {first.hash: 2, second.hash: 4}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("stages: 3\n", r"staged\.yaml:\d+:9: stages: must be a list with '-' before each stage"),
        ("stages: [3]\n", r"stages\.0: must be a mapping of the keys that the stage changes"),
        ("stages:\n- optim: {lr: -1}\n", r"staged\.yaml:13:11: optim\.lr: must be at least 0"),
        ("stages:\n- optim: {speed: 1}\n", r"staged\.yaml:13:11: optim\.speed: unknown"),
        ("stages:\n- {name: b}\n", r"stages\.0\.name: all stages have the name of the file"),
        ("stages:\n- init: {from: a}\n", r"stages\.0\.init: a stage begins with the state of the one before"),
    ],
)
def test_what_a_stage_cannot_be(stages: str, message: str, staged: Callable) -> None:
    with pytest.raises(SpecError, match=message):
        staged(stages)


@pytest.mark.parametrize("settings", [[], ["stack=2", "backbone.drop_path=0"]], ids=["alone", "in stacks"])
def test_a_sweep_over_the_second_stage_trains_the_first_once(
    settings: list[str], staged: Callable, trained: Counter[str], tmp_path: Path
) -> None:
    first = staged(STAGES, *settings[1:]).stages[0].spec
    file = tmp_path / "ablation.yaml"
    file.write_text(
        "base: staged.yaml\nmetric: knn.5nn\n"
        "grid: {stages.0.optim.lr: [1e-4, 2e-4], stages.0.targets.name: [softmax, center]}\n"
        "baseline: {stages.0.optim.lr: 1e-4, stages.0.targets.name: center}\n"
    )
    result = run_sweep(file, settings, runs=tmp_path / "runs", executor="inline")
    assert (result.total, result.left, len(result.table)) == (4, 0, 4)
    assert all(line.ended == "finished" for line in result.table)
    assert trained.pop(first.hash) == 2
    assert list(trained.values()) == [4] * 4
    begins, untrained = result.findings.notes[-2:]
    assert begins.endswith(f": a stage after run {first.hash}")
    assert untrained == "untrained: of these the score of the weights that they begin with"
    plan = load_plan(file, [*settings, "seeds=2"], registry, runs=tmp_path / "runs")
    parents = Counter(trial.spec.after.run for trial in plan.trials)
    assert parents == {first.hash: 4, with_seed(first, 1, registry).hash: 4}


def test_verbs(
    staged: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = (one.spec for one in staged().stages)
    assert main(["validate", "staged.yaml"]) == 0
    assert f"hash {second.hash}, 2 epochs after the end of tiny/{first.hash}" in capsys.readouterr().out
    assert main(["run", "staged.yaml", "--set", "train.keep=[1]"]) == 0
    assert "the next stage follows" in capsys.readouterr().out
    run = f"runs/tiny/{second.hash}"
    assert main(["fork", run, "--at", "1", "--set", "targets.name=softmax"]) == 0
    assert "state of" in capsys.readouterr().out
    assert main(["fork", run, "--at", "1", "--to", "fork.yaml"]) == 0
    spec = load(Path("fork.yaml")).spec
    assert (spec.after.run, spec.after.epoch, spec.epochs_before) == (second.hash, 1, 1)
    assert spec.begins_trained  # as the stage did that it forks
    for wrong, told in (("3", "has no checkpoint of epoch 3 (there are: 1, 2)"), ("2", "so none is left")):
        assert main(["fork", run, "--at", wrong]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert main(["extend", run, "--epochs", "1"]) == 2
    assert "--as-stage" in capsys.readouterr().err
    assert main(["extend", run, "--epochs", "1", "--as-stage"]) == 0
    assert "finished: 2 of 2 steps" in capsys.readouterr().out


def test_a_longer_run_from_the_command_line(
    staged: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    held = ["optim.freeze_last_layer=0", "optim.weight_decay=0.04", "teacher.momentum=0.99"]
    spec = staged("", *held).spec
    settings = [word for setting in held for word in ("--set", setting)]
    assert main(["run", "staged.yaml", *settings]) == 0
    assert main(["extend", f"runs/tiny/{spec.hash}", "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "2 epochs in all; the same as in a run of that length up to step 2" in out
    assert "finished: 4 of 4 steps (resumed at step 2)" in out
