"""One session of a sweep: its lock, runs that others train, folders that were moved, clusters that are lost."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from dino_lab.cli import app as cli
from dino_lab.errors import UserError
from dino_lab.runs.status import Status, read_status
from dino_lab.runs.study import FILE, read_study
from dino_lab.spec.file import dump_yaml
from dino_lab.sweeps.processes import trial
from dino_lab.sweeps.processes.trial import Task, run_trials
from dino_lab.sweeps.ray import head_node
from dino_lab.sweeps.ray.cluster import STOPPED, Cluster, ClusterLost, Guard
from dino_lab.sweeps.ray.dispatch import _run_beside
from dino_lab.sweeps.run import SweepResult, run_sweep
from dino_lab.sweeps.session import locked
from dino_lab.sweeps.watcher import Silent

TEXT = "base: tiny.yaml\nmetric: knn.5nn\ngrid: {targets.momentum: [0, 0.9]}\nset: {train.epochs: 1}\n"
HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], **pipes)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path) -> Callable[..., SweepResult]:
    (tmp_path / "s.yaml").write_text(TEXT)

    def run(runs: Path = tmp_path / "runs", **options: Any) -> SweepResult:
        return run_sweep(tmp_path / "s.yaml", runs=runs, executor="inline", **options)

    return run


class Rows(Silent):
    """Whether garbage was collected while rows came."""

    def __init__(self) -> None:
        self.collecting: list[bool] = []
        self.endings: list[str] = []

    def row(self, task: Task, numbers: Any) -> None:
        self.collecting.append(gc.isenabled())

    def ended(self, task: Task, ending: Status) -> None:
        self.endings.append(ending.state)


def test_a_sweep_is_a_function_and_its_folder_moves_with_its_runs(
    sweep: Callable[..., SweepResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gc.disable()  # as the command line does while modules are imported
    try:
        rows = Rows()
        result = sweep(watcher=rows)
        assert rows.collecting
        assert all(rows.collecting)
    finally:
        gc.enable()
    assert (result.total, result.left, rows.endings) == (2, 0, ["finished"] * 2)
    assert [line.label for line in result.table] == ["momentum=0", "momentum=0.9"]
    assert capsys.readouterr().out == ""

    monkeypatch.chdir(tmp_path)
    for spelled in ("runs", "./runs", "../" + tmp_path.name + "/runs"):
        again = sweep(Path(spelled))
        assert (again.left, again.folder.resolve()) == (0, result.folder.resolve())
    assert len(list((tmp_path / "runs" / "_sweeps" / "s").iterdir())) == 1

    elsewhere = tmp_path / "elsewhere"
    shutil.move(tmp_path / "runs", elsewhere)
    folder = elsewhere / result.folder.relative_to(tmp_path / "runs")
    assert cli.main(["best", str(folder)]) == 0
    assert cli.main(["compare", str(folder)]) == 0
    assert sweep(elsewhere).folder == folder

    # As 0.1.0 wrote it: absolute paths of where the runs were.
    plain = json.loads((folder / FILE).read_text())
    for arm in plain["arms"]:
        arm["runs"] = {
            seed: str(tmp_path / "runs" / "tiny" / Path(path).name) for seed, path in arm["runs"].items()
        }
    (folder / FILE).write_text(json.dumps(plain))
    assert all(path.is_dir() for arm in read_study(folder).arms for path in arm.folders.values())


def test_a_second_sweep_of_the_same_file_is_refused_in_one_line(
    sweep: Callable[..., SweepResult], tmp_path: Path
) -> None:
    folder = sweep(dry_run=True).folder
    assert not (tmp_path / "runs").exists()
    with (
        held(folder / "lock"),
        pytest.raises(UserError, match="another process is running this sweep") as caught,
    ):
        sweep()
    assert "\n" not in str(caught.value)
    assert list(folder.iterdir()) == [folder / "lock"]


def test_the_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "_sweeps" / "s" / "0123"
    with locked(folder):
        assert (folder / "lock").exists()
    assert not (tmp_path / "runs").exists()
    with locked(folder):
        (folder / "table.md").touch()
    assert list(folder.iterdir()) == [folder / "table.md"]


@pytest.fixture
def task(tiny_spec: Callable[..., Any], tmp_path: Path) -> Callable[[int], tuple[Task, Any]]:
    def make(seed: int) -> tuple[Task, Any]:
        spec = tiny_spec("train.epochs=1", f"seed={seed}")
        folder = tmp_path / "runs" / spec.name / spec.hash
        places = {"runs": str(tmp_path / "runs"), "folder": str(folder), "directory": str(tmp_path)}
        stop_file = str(tmp_path / "stop")
        its = Task(
            str(seed),
            spec.name,
            spec.hash,
            dump_yaml(spec),
            **places,
            device="cpu",
            threads=1,
            checkpoint_every=3600.0,
            stop_file=stop_file,
        )
        return its, spec

    return make


def test_a_trial_that_another_process_trains_is_waited_for(
    task: Callable[[int], tuple[Task, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "POLL", 0.01)
    its, spec = task(0)
    waiting, endings = [], []
    with held(Path(its.folder) / "lock") as other:

        def release(one: Task) -> None:
            waiting.append(one)
            other.stdin.close()  # type: ignore[union-attr]
            other.wait()

        run_trials([its], [spec], lambda *_: None, lambda *pair: endings.append(pair), waiting=release)
    assert waiting == [its]
    assert [(one, ending.state) for one, ending in endings] == [(its, "finished")]


def test_whoever_waits_for_a_trial_can_be_stopped(
    task: Callable[[int], tuple[Task, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "POLL", 0.01)
    its, spec = task(0)
    endings: list[Status] = []
    with held(Path(its.folder) / "lock"):
        run_trials(
            *([its], [spec], lambda *_: None, lambda _, ending: endings.append(ending)),
            waiting=lambda one: Path(one.stop_file).touch(),
        )
    assert [(ending.state, ending.reason) for ending in endings] == [("interrupted", "not started")]
    assert read_status(Path(its.folder)).state == "not run"


def test_a_temporary_folder_goes_with_its_creator_wherever_that_counts_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(head_node, "_PREFIX", f"dl{os.getpid()}t-")
    created = Path(head_node.temporary_folder())
    # As seen from a container, in which the creator has no process number.
    foreign = created.with_name(created.name.replace(f"-{os.getpid()}-", "-4194304-"))
    created.rename(foreign)
    try:
        child = "from dino_lab.sweeps.ray import head_node; import sys; head_node._PREFIX = sys.argv[1]; print(head_node.temporary_folder())"
        command = [sys.executable, "-c", child, head_node._PREFIX]
        dead = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())
        assert foreign.is_dir()  # its creator, this process, lives
        assert dead.is_dir()
        mine = Path(head_node.temporary_folder())
        assert not dead.exists()
        assert foreign.is_dir()
        shutil.rmtree(mine)
    finally:
        shutil.rmtree(foreign)


def test_a_cluster_that_ends_ends_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    cluster = Cluster.__new__(Cluster)
    cluster._guard = Guard([("raylet", psutil.Process(process.pid))])
    cluster.check()
    process.kill()
    process.wait()
    for_ever = threading.Event()
    began = time.monotonic()
    with pytest.raises(ClusterLost, match=rf"Ray's raylet \(process {process.pid}\) ended") as caught:
        _run_beside(for_ever.wait, cluster.check)
    for_ever.set()
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)

    def lost(*_: Any, **__: Any) -> None:
        raise caught.value

    monkeypatch.setattr("dino_lab.sweeps.run.run_sweep", lost)
    assert cli.main(["sweep", "s.yaml"]) == 1


def test_what_tune_does_is_handed_on() -> None:
    done: list[int] = []
    _run_beside(lambda: done.append(1), lambda: None)
    assert done == [1]

    def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        _run_beside(fail, lambda: None)


def test_a_cluster_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_node, "_START", 0.01)
    head = head_node.HeadNode(1)
    try:
        with pytest.raises(UserError, match=r"Ray did not start within 0.01 s; --executor inline"):
            head.address()
    finally:
        head.close()
    assert not Path(head.folder).exists()


def test_a_stopped_process_of_ray_is_told_after_some_looks() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        process = psutil.Process(child.pid)
        guard = Guard([("raylet", process)])
        guard.check()
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.001)
        for _ in range(STOPPED - 1):
            guard.check()
        with pytest.raises(ClusterLost, match=rf"Ray's raylet \(process {child.pid}\) was stopped"):
            guard.check()
        process.resume()
        while process.status() == psutil.STATUS_STOPPED:
            time.sleep(0.001)
        guard.check()
        child.kill()
        child.wait()
        with pytest.raises(ClusterLost, match="ended"):
            guard.check()
