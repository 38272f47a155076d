"""Data that runs share: the same images, and nothing that may not be shared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dino_lab.building.components import make_component
from dino_lab.components.data._storage import Resident, Streamed
from dino_lab.registry import registry
from dino_lab.training.data_cache import MOST, Shelf

CPU = torch.device("cpu")


def images(data: Any) -> torch.Tensor:
    return torch.cat([images for split in (data.bank, data.test) for images, _ in split(32)])


def test_the_images_are_those_that_a_run_would_make(tiny_spec: Callable[..., Any]) -> None:
    shelf, spec = Shelf(), tiny_spec()
    shared = shelf.data(spec, registry)
    assert shared is not None
    assert torch.equal(images(shared), images(make_component(spec, registry, CPU, "data", CPU)))
    # Whatever else differs, and only by the data part.
    assert shelf.data(tiny_spec("seed=3", "train.epochs=1"), registry) is shared
    other = shelf.data(tiny_spec("data.seed=1"), registry)
    assert other is not None
    assert not torch.equal(images(other), images(shared))


def test_a_run_with_shared_data_learns_the_same(
    tiny_spec: Callable[..., Any], execute: Callable[..., Any], tmp_path: Path
) -> None:
    spec = tiny_spec("train.epochs=1")
    before = images(shared := Shelf().data(spec, registry))
    alone = execute(spec, runs=tmp_path / "alone")
    sharing = execute(spec, runs=tmp_path / "sharing", shared=shared)
    weights = [load_file(outcome.folder / "backbone.safetensors") for outcome in (alone, sharing)]
    assert weights[0].keys() == weights[1].keys() != set()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert torch.equal(images(shared), before)


def test_only_a_few_are_kept(tiny_spec: Callable[..., Any]) -> None:
    shelf = Shelf()
    first = shelf.data(tiny_spec(), registry)
    for seed in range(1, MOST):
        shelf.data(tiny_spec(f"data.seed={seed}"), registry)
    assert shelf.data(tiny_spec(), registry) is first
    shelf.data(tiny_spec(f"data.seed={MOST}"), registry)
    assert shelf.data(tiny_spec(), registry) is first  # it was asked for since
    for seed in range(5, 5 + MOST):
        shelf.data(tiny_spec(f"data.seed={seed}"), registry)
    assert shelf.data(tiny_spec(), registry) is not first


def test_what_is_streamed_or_fails_is_left_to_the_run(
    tiny_spec: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_lab.components.data.shapes import Shapes

    assert Shelf().data(tiny_spec("data={name: parquet, path: /none, size: 16}"), registry) is None
    original = Shapes._split

    def streamed(self: Shapes, *arguments: Any) -> Any:
        split = original(self, *arguments)
        made = Streamed.__new__(Streamed)
        made.labels, made.skipped = split.labels, 0
        return made

    monkeypatch.setattr(Shapes, "_split", streamed)
    assert Shelf().data(tiny_spec(), registry) is None


def test_torch_keeps_its_threads(tiny_spec: Callable[..., Any]) -> None:
    torch.set_num_threads(2)
    Shelf().data(tiny_spec(), registry)
    assert torch.get_num_threads() == 2


def test_what_does_not_fit_on_a_device_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Resident(torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1), torch.arange(4), skipped=2)
    meta = torch.device("meta")
    there = held.to(meta)
    assert there.images.device == meta
    monkeypatch.setattr("dino_lab.components.data._storage.RESIDENT_SHARE", 0)
    stays = held.to(meta)
    assert stays.images.device == CPU
    assert stays.skipped == 2
    ((batch, _),) = stays.batches([torch.tensor([2, 0])])
    assert batch.device == meta
    assert batch.shape == (2, 3, 1, 1)


def test_images_in_main_memory_are_copied_to_a_gpu_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to a GPU is asynchronous only from pinned memory (torch.Tensor.to, `non_blocking`)."""
    pinned: list[torch.Tensor] = []
    copied: list[tuple[torch.Tensor, str, bool]] = []

    def pin(x: torch.Tensor) -> torch.Tensor:
        pinned.append(x)
        return x

    def copy(x: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        copied.append((x, str(device), non_blocking))
        return x

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", copy)
    images = torch.arange(12, dtype=torch.uint8).view(4, 3, 1, 1)
    held = Resident(images, torch.arange(4), device=torch.device("cuda:0"))
    found, labels = next(held.batches([torch.tensor([2, 0])]))
    assert found.tolist() == images[[2, 0]].tolist()
    assert labels.tolist() == [2, 0]
    assert [x is y for x, y in zip(pinned, (found, labels), strict=True)] == [True, True]
    assert [(x is y, *rest) for (x, *rest), y in zip(copied[-2:], pinned, strict=True)] == [
        (True, "cuda:0", True)
    ] * 2
