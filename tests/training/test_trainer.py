"""How a run is written down, goes on, and ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import Status, read_status, write_status
from dino_lab.training.build import build
from dino_lab.training.loop import NonFinite, train
from dino_lab.training.trainer import FitOptions, prepared, verdict_of

CPU = torch.device("cpu")


class NanGradient(torch.autograd.Function):
    """A finite number whose gradient is none."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


def after(steps: int) -> Callable[[], bool]:
    """A request to stop after so many steps."""
    made = iter(range(1000))
    return lambda: next(made) + 1 >= steps


def test_a_gradient_that_is_no_number_stops_before_the_weights_move(tiny_spec: Callable) -> None:
    run = build(tiny_spec(), registry, CPU)
    loss = run.loss.forward
    run.loss.forward = lambda *given: NanGradient.apply(loss(*given))  # type: ignore[method-assign]
    before = [p.clone() for p in run.parameters]
    with pytest.raises(NonFinite, match="the gradient's norm is nan at step 0"):
        next(train(run))
    assert all(torch.equal(a, b) for a, b in zip(before, run.parameters, strict=True))


def test_weights_that_are_no_numbers_are_not_saved(tiny_spec: Callable, tmp_path: Path) -> None:
    """On a GPU a step is not waited for: what a row would notice, a save must notice before it."""
    options = FitOptions(tmp_path, CPU)
    with prepared(tiny_spec(), registry, options, ()) as trainer:
        trainer.begin()  # type: ignore[union-attr]
        rows = train(trainer.run)  # type: ignore[union-attr]
        row = next(rows)
        trainer.measure(row)  # type: ignore[union-attr]
        trainer.save()  # type: ignore[union-attr]
        trainer._finite = torch.tensor(False)  # type: ignore[union-attr]
        with pytest.raises(NonFinite, match="at or before step 1"):
            trainer.save()  # type: ignore[union-attr]
        assert trainer.end("interrupted").status == "failed"  # type: ignore[union-attr]
    assert read_status(next((tmp_path / "tiny").iterdir())).state == "failed"


def test_the_status_of_a_run_adds_up_its_sessions(tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec("evaluators=[]")
    first = execute(spec, stop=after(4))
    status = read_status(first.folder)
    assert (status.state, status.step, status.total) == ("interrupted", 4, 12)
    assert status.seconds == first.seconds > 0
    write_status(first.folder, Status(**{**vars(status), "seconds": 1000.0}))
    second = execute(spec)
    assert 1000 < second.seconds < 1100
    assert read_status(second.folder).seconds == second.seconds == execute(spec).seconds


def test_a_collapse_that_stopped_a_run_is_an_end(tiny_spec: Callable, execute: Callable) -> None:
    settings = ("targets.temperature=50", "evaluators=[]")
    train_ = "train={epochs: 6, batch_size: 24, log_every: 1, on_collapse: stop}"
    first = execute(tiny_spec(*settings, train_))
    again = execute(tiny_spec(*settings, train_))
    assert first.status == again.status == "collapsed"
    assert (again.step, again.verdict) == (first.step, first.verdict)
    assert len(RunFolder(first.folder).rows()) == first.step + 1
    goes_on = execute(tiny_spec(*settings, train_.replace("stop", "warn")))
    assert (goes_on.status, goes_on.folder) == ("finished", first.folder)


def test_data_that_break_leave_a_checkpoint_and_a_reason(
    tiny_spec: Callable, execute: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_lab.components.data.shapes import Shapes

    batches = Shapes.train

    def broken(self: Shapes, *given: Any) -> Iterator[tuple[Tensor, Tensor]]:
        source = batches(self, *given)
        for _ in range(3):
            yield next(source)
        raise UserError("the process that decodes images was killed")

    with monkeypatch.context() as patch:
        patch.setattr(Shapes, "train", broken)
        with pytest.raises(UserError, match="decodes"):
            execute(tiny_spec("evaluators=[]"))
    folder = next((tmp_path / "runs" / "tiny").iterdir())
    status = read_status(folder)
    assert (status.state, status.step) == ("failed", 3)
    assert status.reason == "the process that decodes images was killed"
    resumed = execute(tiny_spec("evaluators=[]"), stop=after(1))
    assert resumed.step == 4


def test_scores_of_a_run_that_was_never_evaluated_again(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec(), stop=after(1))
    assert "knn.5nn" in outcome.scores_before
    assert outcome.scores_after == {}


def test_rows_are_on_the_disk_before_a_checkpoint(
    tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def note(file: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    monkeypatch.setattr(os, "fsync", note)
    execute(tiny_spec("evaluators=[]"), stop=after(4))
    assert synced.index("rows.jsonl") < synced.index("last.pt.new.tmp")


def test_events_of_a_session_without_a_checkpoint_are_forgotten(
    tiny_spec: Callable, execute: Callable
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    spec = tiny_spec("evaluators=[]")
    folder = execute(spec, stop=after(4)).folder
    (folder / "last.pt").unlink()
    execute(spec)
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        '{"state": "odd"}',
        '{"step": "x"}',
        "[" * 10000,
        '{"state": "finished", "seconds": null}',
    ],
)
def test_a_damaged_status_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(UserError, match=r"status\.json: not what a run writes"):
        read_status(tmp_path)


def test_a_misfit_is_the_reason_of_a_failure(tiny_spec: Callable, execute: Callable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is more than the 96 training images"):
        execute(tiny_spec("train.batch_size=97"))
    status = json.loads(next((tmp_path / "runs" / "tiny").rglob("status.json")).read_text())
    assert (status["state"], status["step"]) == ("failed", 0)
    assert "is more than the 96 training images" in status["reason"]


@pytest.mark.parametrize(
    ("before", "after", "tone"),
    [
        ({"knn.20nn": 0.2, "spectrum.rankme": 9.0}, {"knn.20nn": 0.3, "spectrum.rankme": 5.0}, "good"),
        ({"knn.20nn": 0.3}, {"knn.20nn": 0.3}, "waiting"),
        ({"knn.20nn": 0.3}, {}, "waiting"),
        ({}, {}, "waiting"),
        ({"spectrum.rankme": 5.0}, {"spectrum.rankme": 9.0}, "waiting"),  # no accuracy
    ],
)
def test_a_kept_verdict_is_green_only_for_a_score_that_rose(
    before: dict[str, float], after: dict[str, float], tone: str
) -> None:
    status = Status("finished", verdict="learning", sentence="x", scores_before=before, scores_after=after)
    assert verdict_of(status).tone == tone
    assert verdict_of(replace(status, verdict="collapsed to uniform")).tone == "bad"
