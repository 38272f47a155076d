"""Runs made longer: with the past of the shorter one, or told why that would be another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.training.extend import OtherPast, differences, extend, longer

# Nothing here depends on the length of the run before its last fifth.
HELD = (
    "optim.freeze_last_layer=0",
    "optim.weight_decay={shape: hold, start: 0.04}",
    "teacher.momentum=0.99",
)
HOLD = (*HELD, "optim.lr={shape: hold, start: 1e-3, warmup: 1, units: epochs}")
COOL = (*HELD, "optim.lr={shape: warm-hold-cool, start: 1e-3, end: 0, warmup: 1, units: epochs, cool: 0.34}")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "last.pt", weights_only=True)
    noted = {f"{i} {k}": v for i, of in saved["optimizer"]["state"].items() for k, v in of.items()}
    return {**saved["student"], **{f"t.{k}": v for k, v in saved["teacher"].items()}, **noted}


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return all(torch.equal(value, b[name]) for name, value in a.items())


def numbers(folder: Path) -> list[dict[str, float]]:
    return [
        {k: row[k] for k in ("step", "epoch", "loss", "lr") if k in row} for row in RunFolder(folder).rows()
    ]


def test_a_held_run_goes_on_as_one_that_was_never_shorter(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    short = execute(tiny_spec(*HOLD, "train.epochs=2")).folder
    spec, step = extend(RunFolder(short), 1, tmp_path / "runs", registry)
    assert (step, spec, spec.hash) == (8, tiny_spec(*HOLD), tiny_spec(*HOLD).hash)
    outcome = execute(spec)
    assert (outcome.status, outcome.step, outcome.folder.name) == ("finished", 12, spec.hash)
    whole = execute(tiny_spec(*HOLD), runs=tmp_path / "whole").folder
    assert same(outcome.folder, whole)
    assert numbers(outcome.folder) == numbers(whole)
    assert not same(outcome.folder, short)


def test_a_cooled_run_goes_on_from_what_it_kept_before(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    short = execute(tiny_spec(*COOL, "train.epochs=2", "train.keep=[1]")).folder
    spec, step = extend(RunFolder(short), 1, tmp_path / "runs", registry)
    assert step == 4
    outcome = execute(spec)
    whole = execute(tiny_spec(*COOL), runs=tmp_path / "whole").folder
    assert same(outcome.folder, whole)
    (short / "epoch_1.pt").unlink()
    with pytest.raises(
        OtherPast, match=r"optim\.lr differs from step 6 on.*same for 1 epochs, of which train"
    ):
        extend(RunFolder(short), 2, tmp_path / "runs", registry)
    assert extend(RunFolder(short), 1, tmp_path / "runs", registry) == (spec, 12)  # it is there


def test_keys_that_depend_on_the_length_are_named(
    tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    short = execute(tiny_spec("train.epochs=1")).folder
    with pytest.raises(OtherPast) as raised:
        extend(RunFolder(short), 2, tmp_path / "runs", registry)
    told = str(raised.value)
    assert "\n" not in told
    assert "in a run of 3 epochs" in told
    for key in ("optim.freeze_last_layer", "optim.weight_decay", "teacher.momentum"):
        assert key in told
    assert "optim.lr" not in told
    assert not list((tmp_path / "runs" / "tiny").glob("*/last.pt.new"))
    (short / "last.pt").unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        extend(RunFolder(short), 2, tmp_path / "runs", registry)


def test_the_first_difference_of_a_schedule(tiny_spec: Callable) -> None:
    old = tiny_spec("optim.lr={start: 1, end: 0, until: 0.5}", *HELD, "train.epochs=4")
    found = differences(old, longer(old, 4), 40, 10)
    # After one step of 40 it is 1 - 1/20, of 80 it is 1 - 1/40.
    assert [(one.key, one.step, one.here, one.there) for one in found] == [("optim.lr", 1, 0.95, 0.975)]
    cool: Any = tiny_spec(
        "optim.lr={shape: warm-hold-cool, start: 1, end: 0, cool: 0.5}", *HELD, "train.epochs=4"
    )
    assert [one.step for one in differences(cool, longer(cool, 4), 40, 10)] == [21]
    assert not differences(cool, longer(cool, 4), 21, 10)
