"""Processes that decode images: killed, stopped, slow."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.data import _decoders, _storage
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.errors import UserError
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.spec.model import Spec
from dino_lab.training.trainer import Outcome

CPU = torch.device("cpu")
Batches = Iterator[tuple[Tensor, Tensor]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in two classes, too large for the memory that is granted; decoders are looked at often."""
    monkeypatch.setattr(_storage, "RESIDENT_SHARE", 0.0)
    monkeypatch.setattr(_decoders, "LOOK", 0.02)
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for i in range(count):
            file = tmp_path / "images" / split / f"{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file)
    return tmp_path / "images"


@pytest.fixture
def batches(folder: Path) -> Iterator[Batches]:
    """Batches of which one was taken."""
    found = ImageFolder(CPU, path=str(folder), size=16).train(4, 7, 0)
    next(found)
    yield found
    found.close()  # type: ignore[attr-defined]


def signalled(number: int) -> list[BaseProcess]:
    """The decoders, each of which has got a signal and obeyed it."""
    decoders = multiprocessing.active_children()
    assert decoders
    obeyed = {signal.SIGSTOP: psutil.STATUS_STOPPED, signal.SIGKILL: psutil.STATUS_ZOMBIE}[number]  # type: ignore[index]
    for decoder in decoders:
        assert decoder.pid is not None
        os.kill(decoder.pid, number)
        while psutil.Process(decoder.pid).status() != obeyed:
            time.sleep(0.001)
    return decoders


def test_a_killed_decoder_is_told_with_the_next_batch(batches: Batches) -> None:
    signalled(signal.SIGKILL)
    assert sum(range(1000)) == 499500  # whatever is computed between two batches is not disturbed
    with pytest.raises(UserError, match=r"was killed \(signal 9\); .*; run the same command again"):
        list(itertools.islice(batches, 100))


def test_a_decoder_that_stays_stopped_is_told(batches: Batches) -> None:
    first = signalled(signal.SIGSTOP)[0]
    with pytest.raises(UserError, match=r"process \d+\) stayed stopped .* and was ended; run the same"):
        list(itertools.islice(batches, 100))
    first.join(10)
    assert first.exitcode == -signal.SIGKILL


def test_a_decoder_that_was_stopped_for_a_while_is_waited_for(
    batches: Batches, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_decoders, "STOPPED", 10**9)
    monkeypatch.setattr(_decoders, "SLOW", 0.1)
    decoders = signalled(signal.SIGSTOP)
    told = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    def wake() -> None:
        told.wait(30)
        for decoder in decoders:
            os.kill(decoder.pid or 0, signal.SIGCONT)

    handler = Handler()
    logging.getLogger("dino_lab").addHandler(handler)
    waker = threading.Thread(target=wake)
    waker.start()
    try:
        found = list(itertools.islice(batches, 8))
    finally:
        logging.getLogger("dino_lab").removeHandler(handler)
        waker.join()
    assert caplog.messages == ["no images for 0 s; still waiting for them"]
    expected = itertools.islice(ImageFolder(CPU, path=str(folder), size=16).train(4, 7, 1), 8)
    for (images, labels), (others, known) in zip(found, expected, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, known)


def test_stopped_decoders_do_not_hold_up_the_end(batches: Batches) -> None:
    decoders = signalled(signal.SIGSTOP)
    batches.close()  # type: ignore[attr-defined]
    for decoder in decoders:
        decoder.join(10)
        assert decoder.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_run_whose_decoders_end_is_saved_and_goes_on(
    number: int, folder: Path, tiny_spec: Callable[..., Spec], execute: Callable[..., Outcome]
) -> None:
    data = f"data={{name: image_folder, path: {folder}, size: 16}}"
    spec = tiny_spec(data, "train={epochs: 4, batch_size: 4, log_every: 100}", "evaluators=[]")

    class Hurt:
        """Hurts the decoders in the third step; `rows` come at the end of an epoch, of three steps."""

        def progressed(self, step: int, total: int) -> None:
            if step == 3:
                signalled(number)

        def started(self, *given: object) -> None: ...
        def row(self, *given: object) -> None: ...
        def saved(self, step: int) -> None: ...

    with pytest.raises(UserError, match="run the same command again to continue"):
        execute(spec, listeners=[Hurt()])
    run = next(iter((folder.parent / "runs").rglob("last.pt"))).parent
    checkpoint = load_checkpoint(run, spec.hash, CPU)
    assert checkpoint is not None
    assert 3 <= checkpoint.step < 12
    assert RunFolder(run).status().state == "failed"
    assert execute(spec).status == "finished"
