"""The process that trials are copies of: real processes, no Ray."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dino_lab.distributed.world import World
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.lock import locked
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


def places(task: Task) -> list[Task]:
    """The same trial for two processes on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    return [replace(task, place=World(rank, 2, 0, 1, meeting)) for rank in (0, 1)]


def run_both(
    server: TrialClient, tasks: list[Task], waiting: Callable[[int], object] = lambda _: None
) -> list[Status]:
    """Run both processes of a trial at one server; how it ended in each, whose rows are reported."""

    def one(rank: int) -> Status:
        endings: list[Status] = []
        client = TrialClient(server._address)
        client.run(
            [tasks[rank]],
            lambda *_: None,
            lambda _, ending: endings.append(ending),
            lambda _: waiting(rank),
        )
        return endings[0]

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, (0, 1)))


def test_a_task_with_a_place_is_read_as_it_was(task: Callable[..., Task]) -> None:
    one, other = places(task())
    assert Task.of(other.text()) == other
    assert (one.writes, other.writes, task().writes) == (True, False, True)


def test_processes_that_others_started_train_one_trial(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    alone = task("evaluators=[]")
    together = [
        replace(one, runs=f"{one.runs}/2", folder=f"{one.runs}/2/tiny/{one.hash}") for one in places(alone)
    ]
    assert [ending.state for ending in run_both(server, together)] == ["finished", "not run"]
    assert run(server, alone).state == "finished"
    found = [RunFolder(Path(one.folder)).rows()[1:] for one in (alone, together[0])]
    assert len(found[0]) == 2
    for a, b in zip(*found, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_processes_that_others_started_wait_together_for_a_busy_folder(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    tasks = places(task("evaluators=[]"))
    told: list[int] = []
    with ExitStack() as held:
        held.enter_context(locked(Path(tasks[0].folder)))

        def waiting(rank: int) -> None:
            told.append(rank)
            held.close()

        assert run_both(server, tasks, waiting)[0].state == "finished"
    assert 0 in told
    assert len(told) == len(set(told))


def test_processes_that_others_started_do_not_start_after_a_stop(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    tasks = places(task("evaluators=[]"))
    only_one = [tasks[0], replace(tasks[1], stop_file=tasks[1].directory)]  # which exists
    assert [ending.state for ending in run_both(server, only_one)] == ["interrupted"] * 2
    assert not Path(tasks[0].folder, "rows.jsonl").exists()


def is_waiting(process: psutil.Process) -> bool:
    """Whether a process has a port open, at which others of a trial are to meet it."""
    with suppress(psutil.NoSuchProcess):
        return bool(process.net_connections("tcp"))
    return False


def test_a_process_that_cannot_begin_says_so_and_the_first_can_be_killed(
    server: TrialClient, task: Callable[..., Task]
) -> None:
    one, other = places(task())
    first = TrialClient(server._address)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(run, first, one)
        ending = run(server, replace(other, device="cuda:99"))
        assert ending.state == "failed"
        assert ending.reason.startswith("process 1 of 2: --device cuda:99: this machine has")
        first.abort()
        with pytest.raises(TrialDied):
            waits.result(30)
    assert not any(map(is_waiting, psutil.Process().children(recursive=True)))
