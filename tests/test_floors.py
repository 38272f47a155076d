"""Floors are computed once for the same data and evaluator, and kept beside the runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dino_lab.components.data.shapes import Shapes
from dino_lab.components.evaluators.knn import Knn
from dino_lab.evaluation import floors as rooms
from dino_lab.evaluation.floors import FOLDER, floors_of, side_for
from dino_lab.runs.status import read_status
from dino_lab.training.build import build


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Knn]:
    """Evaluators whose floors were computed."""
    made, compute = [], Knn.floors
    monkeypatch.setattr(Knn, "floors", lambda self, *given: made.append(self) or compute(self, *given))
    return made


@pytest.fixture
def ask(tiny_spec: Callable, tmp_path: Path) -> Callable[..., dict]:
    """The floors of a tiny spec, kept in a folder."""
    from dino_lab.registry import registry

    def floors(*settings: str) -> dict:
        import torch

        run = build(tiny_spec(*settings), registry, torch.device("cpu"))
        return floors_of(list(run.evaluators.items()), run.data, run.spec.data, tmp_path / "kept")

    return floors


def test_what_was_computed_is_not_computed_again(ask: Callable, calls: list[Knn]) -> None:
    first = ask()
    assert first["knn.5nn"].keys() == {"chance", "raw pixels"}
    assert ask("train.epochs=9", "backbone.depth=1") == first  # of the network nothing matters
    assert len(calls) == 1
    other = ask("evaluators=[{name: knn, k: [5]}, {name: knn, k: [7]}]")  # one of which is known
    assert list(other) == ["knn.5nn", "knn.5nn_top5", "knn_2.7nn", "knn_2.7nn_top5"]
    assert other["knn.5nn"] == first["knn.5nn"]
    assert [one.k for one in calls] == [(5,), (7,)]
    ask("data.seed=1")
    assert len(calls) == 3


def test_other_images_are_seen_whatever_the_settings_say(
    ask: Callable, calls: list[Knn], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    batches = Shapes.test
    monkeypatch.setattr(Shapes, "test", lambda self, size: ((255 - x, y) for x, y in batches(self, size)))
    ask()
    assert len(calls) == 2


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"of": {}}', '{"floors": 3}', "\xff", '{"floors": {"5nn": {"chance": "a"}}}']
)
def test_a_damaged_file_is_made_anew(content: str, ask: Callable, calls: list[Knn], tmp_path: Path) -> None:
    first = ask()
    (file,) = (tmp_path / "kept").glob("*.json")
    whole = file.read_text()
    if '"floors"' in content:
        content = json.dumps(json.loads(whole) | json.loads(content))
    file.write_text(content, encoding="latin-1")
    assert ask() == first
    assert len(calls) == 2
    assert file.read_text() == whole


def test_another_process_may_be_faster(
    ask: Callable, calls: list[Knn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask()
    (file,) = (tmp_path / "kept").glob("*.json")
    file.rename(tmp_path / "aside")

    @contextmanager
    def waited(cache: Path) -> Iterator[None]:
        (tmp_path / "aside").rename(file)  # while this process waited
        yield

    monkeypatch.setattr(rooms, "_alone", waited)
    assert ask() == first
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written_does_no_harm(ask: Callable, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    assert ask()["knn.5nn"]


@pytest.mark.parametrize(
    ("train", "test", "channels", "size", "side"),
    [
        (50_000, 10_000, 3, 32, 32),
        (50_000, 10_000, 3, 96, 32),
        (50_000, 10_000, 1, 28, 28),
        (4_000, 1_000, 1, 96, 32),
        (200_000, 10_000, 3, 64, 16),
        (1_281_167, 50_000, 3, 224, 2),
        (10**9, 10**6, 3, 224, 1),
    ],
)
def test_the_work_is_bounded(train: int, test: int, channels: int, size: int, side: int) -> None:
    assert side_for(train, test, channels, size) == side


def test_a_run_has_floors_in_its_status_and_shares_them(
    tiny_spec: Callable, execute: Callable, calls: list[Knn], tmp_path: Path
) -> None:
    first = execute(tiny_spec("train.epochs=1"))
    assert first.floors.keys() == {"knn.5nn", "knn.5nn_top5"}
    assert read_status(first.folder).floors == first.floors
    second = execute(tiny_spec("train.epochs=1", "seed=1"))
    assert second.floors == first.floors
    assert len(calls) == 1
    assert list((tmp_path / "runs" / FOLDER).glob("*.json"))
    again = execute(tiny_spec("train.epochs=1"))
    assert (again.status, again.floors) == ("already finished", first.floors)


def test_a_network_is_scored_before_floors_are_asked_for(
    tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the contract says: what cannot be scored is told by the evaluator, not by its floors."""
    asked: list[str] = []
    forward, floors = Knn.forward, Knn.floors
    monkeypatch.setattr(Knn, "forward", lambda self, *given: asked.append("forward") or forward(self, *given))
    monkeypatch.setattr(Knn, "floors", lambda self, *given: asked.append("floors") or floors(self, *given))
    execute(tiny_spec("train.epochs=1"))
    assert asked[:2] == ["forward", "floors"]
