"""ResNet-18 with a small stem on images of CIFAR's size: images a second, and what 200 epochs would take.

Without CIFAR-10 the images are random ones, and so many; their k-NN accuracy means nothing and is not shown.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path

import torch

from benchmarks.augment import pictures
from benchmarks.gpu.worker import Work, spread
from benchmarks.timing import timed
from dino_lab.components.data._labelled import IMAGENET_MEAN, IMAGENET_STD, Labelled
from dino_lab.components.data._storage import Resident
from dino_lab.protocols import SharedData
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import Shelf
from dino_lab.training.loop import Row, train

FILE = Path(__file__).parents[2] / "experiments" / "dino_resnet18_cifar10.yaml"
SIZE, TOY_SIZE = (50_000, 10_000), (64, 32)
BATCHES = {"toy": (8, 16), "full": (128, 512)}
DRAWN = 2_000  # different random images
EPOCHS, ALL_EPOCHS, SECONDS = 3, 200, 480  # the last two are asked
SIMCLR = (
    "head={name: mlp, hidden: 512, dim: 128}",
    "teacher={name: siamese, stop_gradient: false}",
    "targets={name: identity}",
    "loss={name: info_nce, temperature: 0.5, in_batch: true}",
)
METHODS: dict[str, tuple[str, ...]] = {"DINO": (), "SimCLR": SIMCLR}
TOY = (
    "backbone={name: resnet}",
    "head={hidden: 16, dim: 8}",
    "evaluators=[{name: knn, k: [5]}]",
)


def _split(images: int) -> Resident:
    drawn = pictures(min(images, DRAWN), 32)
    times = -(-images // len(drawn))
    return Resident(drawn.repeat(times, 1, 1, 1)[:images], torch.arange(images) % 10)


@cache
def data(cifar: str | None, toy: bool) -> SharedData:
    """CIFAR-10, or random images."""
    if cifar is None:
        train_images, test_images = TOY_SIZE if toy else SIZE
        splits = _split(train_images), _split(test_images)
        return Labelled(*splits, tuple(map(str, range(10))), 32, IMAGENET_MEAN, IMAGENET_STD)
    found = Shelf().data(load(FILE, [f"data.path={cifar}"]).spec, registry)
    assert found is not None, f"{cifar} cannot be read, or its images do not fit into memory"
    return found


def prepared(work: Work, method: str, batch: int, *, compile: str = "false", epochs: int = ALL_EPOCHS) -> Run:
    """A run of a method, its images on the device."""
    settings = [*METHODS[method], *(TOY if work.toy else ())]
    settings += [f"train={{batch_size: {batch}, epochs: {epochs}, compile: {compile}}}"]
    return build(
        load(FILE, settings).spec, registry, torch.device(work.device), data(work.options.cifar, work.toy)
    )


def _table(work: Work) -> str:
    return (
        f"Images a second, {'CIFAR-10' if work.options.cifar else 'random images'}, bfloat16, channels last"
    )


def speed(work: Work, method: str, batches: Sequence[int], *, compile: str = "false") -> None:
    """Images a second of so many a step, in rounds of steps."""
    steps, rounds = (1, 2) if work.toy else (20, 5)
    for batch in batches:
        rows = train(prepared(work, method, batch, compile=compile))
        first = timed(partial(next, rows), work.device)
        _some(rows, steps)
        times = [timed(partial(_some, rows, steps), work.device) for _ in range(rounds)]
        rate = spread([batch * steps / t for t in times])
        epochs = ALL_EPOCHS * data(work.options.cifar, work.toy).train_images / rate["median"]
        work.row(
            _table(work),
            method=method,
            batch=batch,
            compile=compile,
            images_per_s=rate,
            seconds_of_the_first_step=first,
            minutes_of_200_epochs=epochs / 60,
        )


def _some(rows: Iterator[Row], steps: int) -> None:
    assert len(list(islice(rows, steps))) == steps


def epochs(work: Work, method: str, batch: int) -> None:
    """Three epochs and k-NN behind them."""
    count = 1 if work.toy else EPOCHS
    run = prepared(work, method, batch, epochs=count)
    rows = train(run)
    next(rows)  # what is loaded and chosen once
    lengths = [run.steps_per_epoch - (epoch == 0) for epoch in range(count)]
    each = [timed(partial(_some, rows, length), work.device) for length in lengths]
    began = time.perf_counter()
    (scored,) = run.evaluate(list(run.evaluators.items()))
    seconds = time.perf_counter() - began
    (name, accuracy) = next(iter(scored.named_scores.items()))
    cells = {f"{name} after them": accuracy} if work.options.cifar else {}
    whole = ALL_EPOCHS * min(each) + seconds
    work.row(
        "Epochs",
        method=method,
        batch=batch,
        seconds_an_epoch=spread(each),
        **{"seconds of k-NN": seconds, "minutes of 200 epochs and k-NN": whole / 60},
        **cells,
    )
    figure = f"200 epochs of {method}, batch {batch}, projected, minutes"
    work.asked(figure, whole / 60, f"at most {SECONDS / 60:g}", whole <= SECONDS)


def measure(work: Work) -> None:
    """Nothing is compiled here."""
    small, large = BATCHES[work.options.size]
    work.attempt("DINO", lambda: speed(work, "DINO", (small, large)), 40)
    work.attempt("epochs", lambda: epochs(work, "DINO", large), 40)
    work.attempt("SimCLR", lambda: speed(work, "SimCLR", (large,)), 20)


def measure_compiled(work: Work) -> None:
    """The same compiled."""
    if not work.on_gpu:
        work.note("Compiled", "Compiled steps are measured on a GPU alone.")
        return
    small, large = BATCHES[work.options.size]
    work.attempt("DINO, compiled", lambda: speed(work, "DINO", (large, small), compile="true"), 40)
    work.attempt("DINO, CUDA graphs", lambda: speed(work, "DINO", (small, large), compile="graphs"), 40)
    work.attempt("SimCLR, compiled", lambda: speed(work, "SimCLR", (large,), compile="true"), 40)
