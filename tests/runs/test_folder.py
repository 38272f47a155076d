"""The files of a run's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dino_lab.errors import UserError
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.lock import locked

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    return folder


def test_files_of_a_run(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec())
    names = {file.name.split(".out.")[0] for file in outcome.folder.iterdir()}
    assert names == {
        *(
            "identity.json",
            "spec.yaml",
            "env.json",
            "rows.jsonl",
            "events",
            "last.pt",
            "backbone.safetensors",
        ),
        *("status.json", "lock"),
    }
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


def test_a_half_row_is_forgotten(folder: RunFolder) -> None:
    folder.append_row({"step": 1, "epoch": 0.1})
    folder.append_row({"step": 5, "epoch": 0.5})
    with (folder.path / "rows.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert [row["step"] for row in folder.rows()] == [1, 5]
    assert folder.keep_rows(4) == [{"step": 1, "epoch": 0.1}]
    assert folder.rows() == [{"step": 1, "epoch": 0.1}]


@pytest.mark.parametrize(
    "line",
    [
        *("[1, 2]", "nonsense", '{"step": 1}', '{"step": 1, "epoch": "x"}', "[" * 9999),
        *('{"step": 1, "epoch": NaN}', '{"step": 1, "epoch": 1e-300}', '{"step": 1.5, "epoch": 1}'),
        *('{"step": NaN, "epoch": 1}', '{"step": 1, "epoch": Infinity}', '{"step": 1, "epoch": -1}'),
    ],
)
def test_a_damaged_row_is_named(folder: RunFolder, line: str) -> None:
    folder.append_row({"step": 1, "epoch": 0.1})
    with (folder.path / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=r"rows\.jsonl:2: not a row of numbers"):
        folder.rows()


# ------------------------------------------------------------------------------------------------ the lock


def in_a_child(action: Callable[[], bool]) -> bool:
    """Whether it holds in a copy of this process."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if action() else 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def in_another(path: Path) -> bool:
    """Whether a process that is no copy of this one is refused."""
    code = f"import fcntl; fcntl.lockf(open({str(path / 'lock')!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return "BlockingIOError" in done.stderr


def refused(path: Path) -> bool:
    try:
        with locked(path):
            return False
    except UserError as error:
        return "another process" in str(error)


def test_a_folder_in_use_is_refused_to_others_and_to_this_process(folder: RunFolder) -> None:
    with folder.locked():
        assert refused(folder.path)
        assert in_a_child(lambda: refused(folder.path))
        assert in_another(folder.path)  # although this process asked, and was refused, meanwhile
    assert not refused(folder.path)


def test_the_lock_goes_with_the_process_although_its_children_live(folder: RunFolder) -> None:
    ready, told = os.pipe()
    hold, release = os.pipe()
    holder = os.fork()
    if holder == 0:
        with folder.locked():
            if os.fork() == 0:  # as a decoder, which outlives the run that is killed
                os.close(release)
                os.write(told, b"x")
                os.read(hold, 1)
                os._exit(0)
            signal.pause()
    assert os.read(ready, 1) == b"x"
    assert refused(folder.path)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    assert not refused(folder.path)
    os.write(release, b"x")


def test_a_folder_that_is_made_anew_is_noticed(folder: RunFolder) -> None:
    with folder.locked() as lock:
        lock.check()
        (folder.path / "lock").unlink()
        folder.path.rmdir()
        with locked(folder.path), pytest.raises(UserError, match="removed or replaced"):
            lock.check()


def test_a_file_system_without_locks_is_told(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import fcntl

    def lockf(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with folder.locked() as lock:
        assert "has no locks (No locks available)" in lock.warning
