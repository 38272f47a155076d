"""Processes that start together, tell each other what they decide, and end together."""

from __future__ import annotations

import os
import signal
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as distributed

from dino_lab.distributed import control
from dino_lab.distributed.launch import ProcessDied, Stop, launch
from dino_lab.distributed.world import World, joined
from dino_lab.errors import FailedElsewhere, Misfit, UserError

CPU = torch.device("cpu")


def attempt() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    assert not psutil.Process().children()


def test_the_first_process_gives_the_result_and_nothing_listens_beyond_loopback() -> None:
    def work(world: World, stop: Stop) -> object:
        with joined(world, CPU):
            addresses = [one.laddr for one in psutil.Process().net_connections() if one.status == "LISTEN"]
            found: list[Any] = [None] * world.size
            distributed.all_gather_object(found, (world.rank, world.local_size, addresses))
        return found, torch.get_num_threads()

    found, threads = launch(work, 2)
    assert [(rank, size) for rank, size, _ in found] == [(0, 2), (1, 2)]
    listening = [address for _, _, addresses in found for address in addresses]
    assert listening
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert threads == max(1, len(os.sched_getaffinity(0)) // 2)
    own = [one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.status == "LISTEN"]
    assert not own


def test_a_killed_process_is_started_again_with_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    def work(world: World, stop: Stop) -> int:
        with joined(world, CPU):
            if world.rank == 1 and attempt() < 2:
                os.kill(os.getpid(), signal.SIGKILL)
            control.largest(0)  # the first one waits for the one that is gone
        return attempt()

    assert launch(work, 2, restarts=2) == 2
    assert capfd.readouterr().err == "".join(f"a process ended early; restart {i} of 2\n" for i in (1, 2))


def test_killed_more_often_than_allowed() -> None:
    def work(world: World, stop: Stop) -> None:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    with pytest.raises(ProcessDied, match=r"process 1 of the run was killed \(signal 9\).*after 1 restart$"):
        launch(work, 2, restarts=1)


def test_an_error_ends_all_and_is_raised_once(capfd: pytest.CaptureFixture[str]) -> None:
    def work(world: World, stop: Stop) -> None:
        with joined(world, CPU):
            if world.rank == 1:
                os.write(1, b"of nobody's interest")
                raise Misfit(("data",), "is gone")
            control.largest(0)

    with pytest.raises(UserError, match=r"^data: is gone$"):
        launch(work, 2, restarts=3)
    assert capfd.readouterr() == ("", "")


def test_one_stop_reaches_all() -> None:
    began = time.monotonic()

    def work(world: World, stop: Stop) -> bool:
        while not stop():
            assert time.monotonic() - began < 60
            time.sleep(0.01)
        return True

    assert launch(work, 2, stop=lambda: time.monotonic() - began > 0.3)


def test_whoever_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def work(world: World, stop: Stop) -> None:
        (tmp_path / str(world.rank)).touch()
        time.sleep(60)

    def stop() -> bool:
        if len(list(tmp_path.iterdir())) == 2:
            raise KeyboardInterrupt
        return False

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        launch(work, 2, restarts=3, stop=stop)
    assert time.monotonic() - began < 30


def test_sigint_of_a_process_asks_that_one_alone() -> None:
    def work(world: World, stop: Stop) -> int:
        with joined(world, CPU):
            if world.rank == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return control.largest(10 * world.rank + stop())

    assert launch(work, 2) == 11


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    def work(world: World, stop: Stop) -> None:
        (tmp_path / str(os.getpid())).touch()
        time.sleep(60)

    parent = os.fork()
    if not parent:
        launch(work, 2)
    deadline = time.monotonic() + 30
    while len(found := list(tmp_path.iterdir())) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while any(map(psutil.pid_exists, (int(file.name) for file in found))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state() -> dict[str, Any]:
    module = torch.nn.BatchNorm1d(3)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "half": torch.ones(2).half()}


def together(world: World, work: Callable[[], object]) -> tuple[str, str]:
    """What a call raises, as kind and text."""
    try:
        work()
    except Exception as error:
        return type(error).__name__ if control.is_known(error) else "unknown", str(error)
    return "", ""


def fail_at(world: World, rank: int) -> Callable[[], None]:
    def work() -> None:
        if world.rank == rank:
            raise UserError("no such file")

    return work


def test_what_processes_tell_each_other() -> None:
    def work(world: World, stop: Stop) -> list[Any]:
        first = world.rank == 0
        with joined(world, CPU):
            shared = control.share_state(state() if first else None)
            shared["module"]["weight"] += 1  # a state of its own
            found: list[Any] = [
                control.lead(lambda: 7, lambda result: result + 1) if first else control.follow(),
                control.largest(world.rank),
                control.disagreeing(5 if world.rank < 2 else 6),
                together(world, lambda: control.together(fail_at(world, 0))),
                together(world, lambda: control.together(fail_at(world, 2))),
                together(world, lambda: control.lead(fail_at(world, 0)) if first else control.follow()),
                list(shared["module"]._metadata),
                shared["module"]["weight"].tolist(),
                shared["optimizer"]["state"][0]["step"].item(),
                (shared["half"].dtype, shared["optimizer"]["param_groups"][0]["lr"]),
            ]
            parts: list[Any] = [None] * world.size
            distributed.all_gather_object(parts, found)
        return parts

    first, *others = launch(work, 3)
    weight = state()["module"]["weight"] + 1
    assert isinstance(state()["module"], OrderedDict)
    for found in (first, *others):
        assert found[1:3] == [2, [2]]
        assert found[6:] == [[""], weight.tolist(), 1.0, (torch.float16, 0.001)]
    own, elsewhere = "UserError", FailedElsewhere.__name__
    assert first[0] == 7
    assert [kind for kind, _ in first[3:6]] == [own] * 3
    assert [text for _, text in first[3:6]] == [
        "no such file",
        "process 2 of 3: no such file",
        "no such file",
    ]
    for found in others:
        assert found[0] == 8
        assert found[3:6] == [(elsewhere, "no such file")] * 3


def test_on_one_process_nothing_is_sent() -> None:
    given = state()
    assert control.share_state(given) is given
    assert (control.largest(3), control.disagreeing(3), control.together(lambda: 4)) == (3, [], 4)
    assert control.lead(lambda: 5) == 5
