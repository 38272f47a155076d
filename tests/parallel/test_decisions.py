"""What one process cannot do, all leave; and each reads no more than its share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_lab import collectives
from dino_lab.components.data import _storage as storage
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.errors import Misfit
from dino_lab.registry import registry
from dino_lab.testing.ranks import on_processes
from dino_lab.training import shares
from dino_lab.training.build import build
from dino_lab.training.loop import NoBatch, NonFinite, train

CPU = torch.device("cpu")


def raised(run: Any) -> tuple[str, str]:
    """The exception of a run's first steps, and whether weights have moved."""
    before = [p.detach().clone() for p in run.student.parameters()]
    try:
        for _ in zip(train(run), range(2), strict=False):
            pass
    except (NonFinite, NoBatch) as error:
        same = all(torch.equal(a, b) for a, b in zip(before, run.student.parameters(), strict=True))
        return f"{type(error).__name__}: {error}", str(same)
    return "", ""


def test_a_number_that_is_none_on_one_process_ends_all_before_weights_move(tiny_spec: Callable) -> None:
    def work() -> tuple[str, str]:
        run = build(tiny_spec("optim.freeze_last_layer=0"), registry, CPU)
        if collectives.rank() == 1:
            forward = run.loss.forward
            run.loss.forward = lambda *given: forward(*given) * torch.nan  # type: ignore[method-assign]
        return raised(run)

    assert on_processes(2, work) == [("NonFinite: the loss is nan at step 0", "True")] * 2


def test_a_batch_that_one_process_cannot_have_ends_all(tiny_spec: Callable) -> None:
    def work() -> tuple[str, str]:
        run = build(tiny_spec(), registry, CPU)
        if collectives.rank() == 1:
            run.data.train_share = _broken  # type: ignore[attr-defined]
        return raised(run)

    assert on_processes(2, work) == [("NoBatch: a.png: unreadable", "True")] * 2


def _broken(*_: Any) -> Iterator[tuple[Tensor, Tensor]]:
    raise OSError("a.png: unreadable")
    yield


def test_a_batch_smaller_than_the_processes_is_refused(tiny_spec: Callable) -> None:
    def work() -> str:
        with pytest.raises(Misfit) as caught:
            build(tiny_spec("train.batch_size=2"), registry, CPU)
        return str(caught.value)

    for said in on_processes(3, work):
        assert "a batch of 2 cannot be divided by 3 processes" in said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for i in range(8):
            file = tmp_path / split / f"class{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(file)
    return tmp_path


def test_a_process_decodes_its_share_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage.never_resident():
        data = ImageFolder(CPU, path=str(folder), size=16)
    seen: list[int] = []
    decode = storage._Decoder.__getitem__

    def counted(decoder: Any, rows: list[int]) -> Any:
        seen.extend(rows)
        return decode(decoder, rows)

    monkeypatch.setattr(storage, "workers", lambda: 0)  # in this process, which counts
    monkeypatch.setattr(storage._Decoder, "__getitem__", counted)
    some = next(data.train_share(8, 0, 0, slice(2, 5)))
    assert len(seen) == 3
    whole = next(data.train(8, 0, 0))
    assert all(torch.equal(a, b[2:5]) for a, b in zip(some, whole, strict=True))


def test_workers_are_divided_by_the_processes_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "cores", lambda: 12)
    assert storage.workers() == 12
    for local, wanted in ((1, 12), (4, 3), (5, 2), (64, 1)):
        monkeypatch.setattr(collectives, "local_processes", lambda local=local: local)
        assert storage.workers() == wanted


def test_an_augmentation_that_needs_the_whole_batch_sees_it(tiny_spec: Callable) -> None:
    settings = ("augment={name: triplet, size: 16}", "loss={name: info_nce}", "train.batch_size=7")

    def work() -> list[Tensor]:
        run = build(tiny_spec(*settings), registry, CPU)
        images, labels = next(shares.batches(run, 0))
        return [images, labels, *shares.views(run, images, 0).crops]

    images, labels, crops = work()
    ranks = on_processes(2, work)
    assert all(torch.equal(rank[0], images) for rank in ranks)
    assert torch.equal(torch.cat([rank[1] for rank in ranks]), labels)
    assert torch.equal(torch.cat([rank[2] for rank in ranks], 1), crops)
