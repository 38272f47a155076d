from __future__ import annotations

import fcntl
import json
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino_lab.errors import UserError
from dino_lab.runs.folder import RunFolder

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def test_what_a_run_leaves(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec())
    names = {file.name.split(".out.")[0] for file in outcome.folder.iterdir()}
    assert names == {
        "spec.yaml", "env.json", "rows.jsonl", "events", "last.pt", "backbone.safetensors", "result.json", "lock"
    }  # fmt: skip
    environment = json.loads((outcome.folder / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    row = RunFolder(outcome.folder).rows()[-1]
    assert {"loss", "entropy", "entropy_max", "kl", "center_norm", "feature_spread", "effective_rank"} <= set(
        row
    )
    assert {
        "knn.5nn",
        "lr",
        "weight_decay",
        "gradient_norm",
        "images_per_second",
        "data_wait",
        "epoch",
        "step",
    } <= set(row)
    assert row["kl"] == pytest.approx(row["loss"] - row["entropy"], abs=1e-5)


def test_a_finished_run_says_so(tiny_spec: Callable, execute: Callable) -> None:
    first, again = execute(tiny_spec()), execute(tiny_spec())
    assert again.status == "already finished"
    assert (again.scores_after, again.folder, again.verdict) == (
        first.scores_after,
        first.folder,
        first.verdict,
    )


def test_another_spec_has_another_folder(tiny_spec: Callable, execute: Callable) -> None:
    one, other = execute(tiny_spec()), execute(tiny_spec("targets.momentum=0.8"))
    assert one.folder != other.folder
    assert other.status == "finished"


def test_a_half_checkpoint_is_refused_by_name(tiny_spec: Callable, execute: Callable) -> None:
    steps = iter(range(100))
    outcome = execute(tiny_spec(), stop=lambda: next(steps) >= 4)
    checkpoint = outcome.folder / "last.pt"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"last\.pt: not a whole checkpoint .*delete it"):
        execute(tiny_spec())
    assert checkpoint.stat().st_size == len(whole) // 2


def test_a_foreign_checkpoint_is_refused(folder: RunFolder) -> None:
    folder.save("aaaa", 3, {})
    with pytest.raises(UserError, match="belongs to spec aaaa"):
        folder.load("bbbb", CPU)


def test_a_checkpoint_runs_no_code(folder: RunFolder) -> None:
    torch.save({"format": 1, "spec": "aaaa", "step": 0, "evil": Path("x")}, folder.checkpoint)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        folder.load("aaaa", CPU)


def test_a_folder_in_use_is_refused(folder: RunFolder) -> None:
    with (folder.path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process"), folder.locked():
            pass


def test_a_full_disk_keeps_the_old_checkpoint(folder: RunFolder) -> None:
    folder.save("aaaa", 1, {"x": torch.zeros(10)})
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            folder.save("aaaa", 2, {"x": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    state = folder.load("aaaa", CPU)
    assert state is not None
    assert state["step"] == 1
    assert [file.name for file in folder.path.iterdir()] == ["last.pt"]


def test_a_half_row_is_forgotten(folder: RunFolder) -> None:
    folder.append_row({"step": 1})
    folder.append_row({"step": 5})
    with (folder.path / "rows.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert [row["step"] for row in folder.rows()] == [1, 5]
    assert folder.keep_rows(4) == [{"step": 1}]
    assert folder.rows() == [{"step": 1}]
