"""Images lie once in the memory of a machine, whoever started the processes of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_lab.components.data import shapes
from dino_lab.registry import registry
from dino_lab.testing.ranks import on_processes
from dino_lab.training import data_cache
from dino_lab.training.data_cache import Shelf, of_machine


def left(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of shared memory, for this test alone."""
    (tmp_path / "shm").mkdir()
    monkeypatch.setattr(data_cache, "_FOLDER", tmp_path / "shm")
    return tmp_path / "shm"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that a process made the data."""
    calls: list[int] = []
    original = data_cache._made
    monkeypatch.setattr(data_cache, "_made", lambda *given: (calls.append(1), original(*given))[1])
    return calls


def test_one_process_makes_them_and_all_see_them(
    tiny_spec: Callable[..., Any], folder: Path, made: list[int]
) -> None:
    spec = tiny_spec()

    def work() -> tuple[int, list[torch.Tensor], int]:
        data: Any = of_machine(spec, registry, None)
        batch = next(data.train(8, 0, 0))
        torch.distributed.barrier()
        data._train.images[0, 0, 0, 0] = 7  # of the memory that all others see
        torch.distributed.barrier()
        return len(made), [*batch], int(data._train.images[0, 0, 0, 0])

    expected = list(next(Shelf().data(spec, registry).train(8, 0, 0)))  # type: ignore[union-attr]
    made.clear()
    found = on_processes(3, work)
    assert [count for count, _, _ in found] == [1, 0, 0]
    for _, batch, first in found:
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))
        assert first == 7
    assert left(folder) == []


def test_machines_have_each_their_own(
    tiny_spec: Callable[..., Any], folder: Path, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four processes two are on a machine."""
    spec = tiny_spec()
    monkeypatch.setattr("socket.gethostname", lambda: f"host{torch.distributed.get_rank() // 2}")

    def work() -> tuple[int, bool]:
        found = of_machine(spec, registry, None)
        return len(made), found is not None

    assert on_processes(4, work) == [(1, True), (0, True), (1, True), (0, True)]
    assert left(folder) == []


def test_what_each_has_already_is_taken(tiny_spec: Callable[..., Any]) -> None:
    spec = tiny_spec()
    mine = Shelf().data(spec, registry)
    assert on_processes(2, lambda: of_machine(spec, registry, mine) is mine) == [True, True]
    assert of_machine(spec, registry, None) is None  # one process makes it where it is built


@pytest.mark.parametrize("fault", ["data that cannot be made", "a class that cannot be sent", "no room"])
def test_else_each_makes_its_own(
    fault: str, tiny_spec: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    spec = tiny_spec()
    if fault == "no room":
        monkeypatch.setattr("os.posix_fallocate", fails, raising=False)
    elif fault == "data that cannot be made":
        monkeypatch.setattr(data_cache, "make_component", fails)
    else:
        monkeypatch.setattr(shapes.Shapes, "__reduce__", fails, raising=False)
    assert on_processes(2, lambda: of_machine(spec, registry, None)) == [None, None]
    assert left(folder) == []
