"""A run on several processes: one of them writes, all end together, and it goes on with another number."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dino_lab.collectives import rank
from dino_lab.components.evaluators.knn import Knn
from dino_lab.distributed.launch import Stop, launch
from dino_lab.distributed.world import World, joined
from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.lock import locked
from dino_lab.runs.status import read_status
from dino_lab.spec.model import Spec
from dino_lab.training.trainer import FitOptions, Outcome, fit

CPU = torch.device("cpu")
SPEED = ("images_per_second", "data_wait")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    yield
    assert not psutil.Process().children()


class Steps:
    """A listener that calls a function after every step."""

    def __init__(self, after: Callable[[int], object] = lambda step: None) -> None:
        self.progressed = lambda step, total: after(step)
        self.started = self.row = self.saved = lambda *_: None


def train(
    spec: Spec,
    runs: Path,
    processes: int,
    *,
    restarts: int = 0,
    stop_at: tuple[int, int] | None = None,  # rank and step
    kill_at: tuple[int, int] | None = None,
    checkpoint_every: float = 3600.0,
) -> Outcome:
    """Train on so many processes; the outcome that all have."""

    def work(world: World, stop: Stop) -> list[Outcome]:
        steps = 0

        def asked() -> bool:
            nonlocal steps
            steps += 1
            if kill_at == (world.rank, steps) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
            return stop() or stop_at == (world.rank, steps)

        with joined(world, CPU, 1):
            outcome = fit(
                spec, registry, FitOptions(runs, CPU, checkpoint_every), listeners=[Steps()], stop=asked
            )
            parts: list[Any] = [outcome] * world.size
            if world.size > 1:
                torch.distributed.all_gather_object(parts, outcome)
        return parts

    outcomes = launch(work, processes, restarts=restarts)
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


def rows(folder: Path) -> list[dict[str, float]]:
    found = RunFolder(folder).rows()
    return [{name: value for name, value in row.items() if name not in SPEED} for row in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = load_checkpoint(folder, None, CPU)
    assert found is not None
    return found.state["student"]


def assert_close(one: Path, other: Path) -> None:
    assert [row.keys() for row in rows(one)] == [row.keys() for row in rows(other)]
    for a, b in zip(rows(one), rows(other), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)


def test_rows_are_those_of_one_process_and_the_first_alone_writes(
    tiny_spec: Callable, execute: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()
    evaluate = Knn.forward

    def watched(self: Knn, *given: Any) -> Any:
        (evaluated / str(rank())).touch()
        return evaluate(self, *given)

    monkeypatch.setattr(Knn, "forward", watched)
    spec = tiny_spec()
    alone = execute(spec)
    several = train(spec, tmp_path / "several", 2)
    assert (several.status, several.step) == ("finished", 12)
    assert alone.folder.name == several.folder.name
    names = [{file.name.partition(".172")[0] for file in one.folder.iterdir()} for one in (alone, several)]
    assert {name for name in names[0] if "tfevents" not in name} == {
        name for name in names[1] if "tfevents" not in name
    }
    assert len(list(several.folder.glob("events.out.tfevents.*"))) == 1
    assert [file.name for file in evaluated.iterdir()] == ["0"]
    assert_close(alone.folder, several.folder)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 2)])
def test_a_checkpoint_goes_on_with_another_number(
    tiny_spec: Callable, execute: Callable, tmp_path: Path, before: int, after: int
) -> None:
    spec = tiny_spec("evaluators=[]")
    whole = execute(spec)
    first = train(spec, tmp_path / "parts", before, stop_at=(0, 5))
    assert (first.status, first.step) == ("interrupted", 5)
    second = train(spec, tmp_path / "parts", after)
    assert (second.status, second.step) == ("finished", 12)
    assert_close(whole.folder, second.folder)


def test_a_stop_on_any_process_saves_once_and_ends_all(tiny_spec: Callable, tmp_path: Path) -> None:
    outcome = train(tiny_spec("evaluators=[]"), tmp_path, 3, stop_at=(2, 4))
    assert (outcome.status, outcome.step) == ("interrupted", 4)
    assert (read_status(outcome.folder).state, read_status(outcome.folder).step) == ("interrupted", 4)
    assert sorted(file.name for file in outcome.folder.glob("*.pt")) == ["last.pt"]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_with_9_is_never_killed(tiny_spec: Callable, tmp_path: Path, victim: int) -> None:
    spec = tiny_spec("evaluators=[]")
    whole = train(spec, tmp_path / "whole", 2)
    killed = train(spec, tmp_path / "killed", 2, restarts=1, kill_at=(victim, 7), checkpoint_every=0)
    assert killed.status == "finished"
    assert rows(whole.folder) == rows(killed.folder)
    one, other = weights(whole.folder), weights(killed.folder)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_run_is_left_alone_by_all(tiny_spec: Callable, tmp_path: Path) -> None:
    spec = tiny_spec("evaluators=[]")
    first = train(spec, tmp_path, 2)
    status = (first.folder / "status.json").read_bytes()
    assert train(spec, tmp_path, 2).status == "already finished"
    assert (first.folder / "status.json").read_bytes() == status
    scored = train(tiny_spec(), tmp_path, 2)  # with an evaluator that it has not seen
    assert scored.status == "already finished"
    assert scored.scores_after.keys() == {"knn.5nn", "knn.5nn_top5"}


def test_a_busy_folder_is_said_once(
    tiny_spec: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = tiny_spec("evaluators=[]")
    outcome = train(spec, tmp_path, 2, stop_at=(0, 1))
    with locked(outcome.folder), pytest.raises(UserError, match="another process is running this spec"):
        train(spec, tmp_path, 2, restarts=3)
    assert capfd.readouterr() == ("", "")


def test_a_collapse_ends_all(tiny_spec: Callable, tmp_path: Path) -> None:
    spec = tiny_spec(
        "evaluators=[]",
        "targets.temperature=100",
        "train.on_collapse=stop",
        "train.log_every=1",
        "train.epochs=5",
    )
    outcome = train(spec, tmp_path, 2)
    assert outcome.status == read_status(outcome.folder).state == "collapsed"
    assert 0 < outcome.step < outcome.total


def test_an_evaluator_that_fails_ends_all_in_its_words(
    tiny_spec: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Knn, *given: Any) -> Any:
        raise ValueError("no neighbours today")

    monkeypatch.setattr(Knn, "forward", fail)
    with pytest.raises(ValueError, match="no neighbours today"):
        train(tiny_spec(), tmp_path, 2, restarts=3)
    status = read_status(next((tmp_path / "tiny").iterdir()))
    assert (status.state, status.reason) == ("failed", "ValueError: no neighbours today")
