"""Checkpoints are whole or refused, and the one before the last is kept."""

from __future__ import annotations

import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino_lab.errors import UserError
from dino_lab.runs.checkpoint import load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def save(folder: Path, step: int, **state: object) -> None:
    save_checkpoint(folder, "aaaa", step, 1.5 * step, {"student": state or {"x": torch.arange(10.0)}})


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, "aaaa", CPU) is None
    save(tmp_path, 3, x=torch.arange(3.0))
    found = load_checkpoint(tmp_path, "aaaa", CPU)
    assert found is not None
    assert (found.run, found.step, found.seconds, found.warning) == ("aaaa", 3, 4.5, "")
    assert torch.equal(found.state["student"]["x"], torch.arange(3.0))


def test_each_flipped_bit_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    file, source = tmp_path / "last.pt", random.Random(0)
    whole = file.read_bytes()
    for place in source.sample(range(len(whole)), 50):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << source.randrange(8)
        file.write_bytes(damaged)
        found = load_checkpoint(tmp_path, "aaaa", CPU)
        assert found is not None
        assert found.step == 1
        assert "last.pt: not a whole checkpoint" in found.warning
        assert "previous.pt of step 1 is used" in found.warning


def test_a_killed_save_leaves_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / "last.pt").unlink()  # between the two renames of the third
    found = load_checkpoint(tmp_path, "aaaa", CPU)
    assert found is not None
    assert found.step == 1


def test_a_run_goes_on_from_the_checkpoint_before(
    tiny_spec: Callable, execute: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = execute(tiny_spec(), runs=tmp_path / "whole")
    steps = iter(range(100))
    cut = execute(tiny_spec(), checkpoint_every=0.0, stop=lambda: next(steps) >= 4)
    file = cut.folder / "last.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    again = execute(tiny_spec())
    assert again.status == "finished"
    assert "previous.pt of step 4 is used" in caplog.text
    one, other = (torch.load(run.folder / "last.pt")["student"] for run in (whole, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_half_checkpoint_alone_is_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path, 1)
    file = tmp_path / "last.pt"
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(half)
    with pytest.raises(UserError, match=r"last\.pt: not a whole checkpoint .*delete it"):
        load_checkpoint(tmp_path, "aaaa", CPU)
    assert file.read_bytes() == half


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 3)
    with pytest.raises(UserError, match="belongs to run aaaa, not to bbbb"):
        load_checkpoint(tmp_path, "bbbb", CPU)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"format": 1, "spec": "aaaa", "step": 0, "evil": Path("x")}, tmp_path / "last.pt")
    with pytest.raises(UserError, match="none of it was run") as caught:
        load_checkpoint(tmp_path, "aaaa", CPU)
    assert "weights_only" not in str(caught.value)


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save(tmp_path, 2, x=torch.zeros(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    found = load_checkpoint(tmp_path, "aaaa", CPU)
    assert found is not None
    assert found.step == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]
