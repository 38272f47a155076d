"""The process that trials are copies of: real processes, no Ray."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, read_status
from dino_lab.spec.file import dump_yaml
from dino_lab.sweeps.processes.launch import start_server
from dino_lab.sweeps.processes.trial import Task, run_trials, spec_of
from dino_lab.sweeps.processes.trial_client import TrialClient, TrialDied

PLUGIN = """\
import os
from pathlib import Path

from dino_lab.components.data.shapes import Shapes
from dino_lab.registry import register


@register("data", "counted")
class Counted(Shapes):
    '''Shapes that leave a line whenever they are drawn.'''

    def __init__(self, device, *, size: int = 16, train_images: int = 96, test_images: int = 48, file: str):
        with Path(file).open("a") as log:
            log.write("drawn\\n")
        super().__init__(device, size=size, train_images=train_images, test_images=test_images)
"""


@contextmanager
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dl-test-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, as a socket needs."""
    with short_folder() as path:
        yield path


@pytest.fixture
def task(tiny_spec: Callable[..., Any], folder: Path) -> Callable[..., Task]:
    """A trial of the tiny spec."""

    def make(*settings: str, threads: int = 1, plugins: tuple[str, ...] = ()) -> Task:
        spec = tiny_spec("train.epochs=1", *settings)
        return Task(
            label="trial",
            name=spec.name,
            hash=spec.hash,
            spec=dump_yaml(spec),
            runs=str(folder / "runs"),
            folder=str(folder / "runs" / spec.name / spec.hash),
            directory=str(folder),
            device="cpu",
            threads=threads,
            checkpoint_every=3600.0,
            stop_file=str(folder / "stop"),
            plugins=plugins,
        )

    return make


@pytest.fixture(scope="module")
def server() -> Iterator[TrialClient]:
    with short_folder() as folder:
        (folder / "socket").mkdir()
        address = str(folder / "socket" / "server")
        process = start_server(address)
        yield TrialClient(address)
        process.close()
        assert not (folder / "socket").exists()


def run(server: TrialClient, task: Task, row: Callable[[Any], None] = lambda _: None) -> Status:
    """One trial by itself."""
    endings: dict[str, Status] = {}
    server.run([task], lambda _, numbers: row(numbers), endings.__setitem__)
    return endings[task.hash]


def test_one_server_draws_once_for_all_trials_whatever_their_threads(
    server: TrialClient, task: Callable[..., Task], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_lab.registry import registry
    from dino_lab.registry.plugin_files import load_plugins

    plugin, log = folder / "counted.py", folder / "log"
    plugin.write_text(PLUGIN)
    with registry.scratch():
        load_plugins([plugin])
        counted = f"data={{name: counted, file: {log}}}"
        tasks = [task(counted, f"seed={i}", threads=i, plugins=(str(plugin),)) for i in (1, 2)]
    rows: list[Any] = []
    for one in tasks:
        # With a pool of threads from before the fork, the second would wait for ever.
        assert run(server, one, rows.append).state == "finished"
        assert RunFolder(Path(one.folder)).rows()[-1]["step"] == 4
    assert log.read_text() == "drawn\n"
    assert [row["step"] for row in rows if "total" in row].count(4) == 2


def test_a_trial_that_is_killed_is_told_and_the_next_one_runs(
    server: TrialClient, task: Callable[..., Task], folder: Path
) -> None:
    def kill(row: Any) -> None:
        for one in psutil.Process().children(recursive=True):
            if any(Path(file.path).name == "lock" for file in one.open_files()):
                one.kill()

    with pytest.raises(TrialDied, match="signal 9"):
        run(server, task("train.epochs=1000"), kill)
    assert run(server, task()).state == "finished"


def test_whoever_does_not_want_a_trial_any_more_ends_it_and_it_saves(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    class Enough(Exception):
        pass

    def enough(row: Any) -> None:
        if row["step"] >= 2:
            raise Enough

    long = task("train.epochs=1000")
    with pytest.raises(Enough):
        run(server, long, enough)
    assert (Path(long.folder) / "last.pt").exists()
    assert read_status(Path(long.folder)).state == "stopped"


def test_a_trial_that_is_stopped_saves_and_ends_when_nobody_wants_it(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    class Enough(Exception):
        pass

    unwanted, interrupted = task("train.epochs=1000"), task("train.epochs=1000", "seed=1")

    def freeze(one: Task, row: Any) -> bool:
        lock = f"{one.folder}/lock"
        trials = psutil.Process().children(recursive=True) if row["step"] == 2 else []
        frozen = [trial for trial in trials if lock in [file.path for file in trial.open_files()]]
        for trial in frozen:
            trial.suspend()
        return bool(frozen)

    def refuse(row: Any) -> None:
        if freeze(unwanted, row):
            raise Enough

    def stop(row: Any) -> None:
        if freeze(interrupted, row):
            Path(interrupted.stop_file).touch()

    with pytest.raises(Enough):
        run(server, unwanted, refuse)
    assert read_status(Path(unwanted.folder)).state == "stopped"
    assert run(server, interrupted, stop).state == "interrupted"


def test_where_no_server_is_one_is_started(task: Callable[..., Task], folder: Path) -> None:
    before = psutil.Process().children()
    for address in (None, str(folder / "nobody")):
        alone = TrialClient(address)
        assert run(alone, task(f"seed={int(address is None)}")).state == "finished"
        (process,) = [
            one
            for one in psutil.Process().children()
            if one not in before and "dino_lab.sweeps.processes.trial_server" in one.cmdline()
        ]
        alone.close()
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_trial_in_two_processes(server: TrialClient, task: Callable[..., Task], folder: Path) -> None:
    rows: list[Any] = []
    one = replace(task("evaluators=[]"), processes=2)
    status = run(server, one, rows.append)
    assert (status.state, status.step) == ("finished", 4)
    assert [row["step"] for row in rows] == [0, 0, 2, 4]  # the first says that it has started


@pytest.mark.parametrize("way", ["weak", "asked"])
def test_a_trial_in_two_processes_is_stopped(task: Callable[..., Task], way: str) -> None:
    one = replace(task("evaluators=[]", "train.epochs=500"), processes=2)
    began = Path(one.folder) / "rows.jsonl"
    endings: list[Status] = []
    stop = {way: began.exists}
    run_trials([one], [spec_of(one)], lambda *_: None, lambda _, ending: endings.append(ending), **stop)
    assert endings[0].state == {"weak": "stopped", "asked": "interrupted"}[way]
    assert 0 < endings[0].step < 2000
    assert load_checkpoint(Path(one.folder), None, torch.device("cpu")) is not None


def test_a_killed_process_of_a_trial_is_started_again(server: TrialClient, task: Callable[..., Task]) -> None:
    one = replace(
        task("evaluators=[]", "train.epochs=5", "train.log_every=1"),
        processes=2,
        restarts=1,
        checkpoint_every=0.0,
    )
    steps: list[int] = []

    def row(numbers: Any) -> None:
        if numbers["step"] == 3 and 3 not in steps:
            family = psutil.Process().children(recursive=True)
            youngest = max(family, key=lambda process: process.create_time())
            youngest.kill()
        steps.append(numbers["step"])

    assert run(server, one, row).state == "finished"
    assert steps[0] == 0
    assert steps[-1] == 20
    again = steps[steps.index(3) + 1 :]
    assert min(again) >= 2  # it went on, and did not begin anew
    assert again[-18:] == list(range(3, 21))
