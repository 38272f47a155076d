"""Several small trials on one device: one at a time, in a process each, and packed into one.

In a process each is what `resources: {gpu: 0.25}` does with four; all of them make so many steps, and the
slowest counts. No evaluation, no checkpoint. The rows of one at a time and of the pack must agree first.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.report import section, spread, table
from benchmarks.timing import ratios, synchronize
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import Run, build
from dino_lab.training.data_cache import Shelf
from dino_lab.training.loop import Row, train
from dino_lab.training.stacked.loop import train_stacked

TRIALS = 4
ROUNDS, WARM = 5, 3
TEMPERATURES = (0.02, 0.03, 0.04, 0.05)
QUICKSTART = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
SMALL = "backbone={name: vit, width: 192, depth: 12, heads: 3, patch: 4}"
RESNET = "backbone={name: timm, model: resnet18, stem: small}"
ONE, EACH, PACKED = "one at a time", "a process each", f"packed by {TRIALS}"
SHELF = Shelf()  # trials of a process share their images
# Name, settings over the quickstart, steps of a round.
ON_CPU = {"ViT of the quickstart, batch 64": ((), 3)}
ON_GPU = {
    "ViT of the quickstart, batch 64": ((), 50),
    "ViT-T/4, batch 64": ((SMALL,), 20),
    "ResNet-18, batch 256": ((RESNET, "train.batch_size=256", "train.precision=bfloat16"), 20),
}
Settings = tuple[str, ...]


def prepare(settings: Settings, trial: int, device: torch.device) -> Run:
    """One trial of a sweep over temperatures."""
    own = (f"targets.temperature={TEMPERATURES[trial]}", "train.epochs=1000", "train.log_every=1000000")
    spec = load(QUICKSTART, [*own, *settings]).spec
    return build(spec, registry, device, SHELF.data(spec, registry))


def main() -> str:
    """Interleaved rounds at every size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    for name, (settings, steps) in (ON_GPU if device.type == "cuda" else ON_CPU).items():
        rows += _rows(name, settings, steps, device)
    text = table(["network", "how", "trial steps/s, median (range)", "times one at a time, in pairs"], rows)
    text += (
        f"\n\n{TRIALS} trials that differ in `targets.temperature`, on {_name(device)}. Asked, of a GPU: 3."
    )
    return section("Small trials together", "python -m benchmarks.together", text)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def _rows(name: str, settings: Settings, steps: int, device: torch.device) -> list[list[str]]:
    rates = measure(settings, steps, device)
    return [[name, way, spread(rate, 1), spread(ratios(rate, rates[ONE]))] for way, rate in rates.items()]


def measure(
    settings: Settings, steps: int, device: torch.device, rounds: int = ROUNDS, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Trial steps a second by `ONE`, `EACH` and `PACKED` in rounds of so many steps.

    No round begins after `seconds`, but one is always counted.
    """
    began = time.perf_counter()
    _check(settings, device)
    one = train(prepare(settings, 0, device))
    packed = [prepare(settings, trial, device) for trial in range(TRIALS)]
    together = train_stacked(packed)
    with _processes(settings, device) as step_all:
        ways: dict[str, tuple[Callable[[int], None], int]] = {
            ONE: (lambda count: _make(one, count, device), 1),
            EACH: (step_all, TRIALS),
            PACKED: (lambda count: _make(together, count, device), TRIALS),
        }
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            if round_ > 1 and time.perf_counter() - began > seconds:
                break
            for way, (make, trials) in ways.items():
                started = time.perf_counter()
                make(steps if round_ else WARM)
                if round_:
                    rates[way].append(trials * steps / (time.perf_counter() - started))
    return rates


def _make(rows: Iterator[object], steps: int, device: torch.device) -> None:
    assert sum(1 for _ in islice(rows, steps)) == steps
    synchronize(device.type)


def _check(settings: Settings, device: torch.device) -> None:
    """The same loss after a step, packed or not."""
    every = (*settings, "train.log_every=1")
    runs = [prepare(every, trial, device) for trial in range(TRIALS)]
    (packed,) = islice(train_stacked(runs), 1)
    for trial, row in enumerate(packed):
        assert isinstance(row, Row)
        alone = next(train(prepare(every, trial, device))).numbers["loss"]
        assert abs(row.numbers["loss"] - alone) < 0.01 * alone, (row.numbers["loss"], alone)


@contextlib.contextmanager
def _processes(settings: Settings, device: torch.device) -> Iterator[Callable[[int], None]]:
    """A process for each trial; what is given makes so many steps in all of them."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(TRIALS)]
    threads = max(1, torch.get_num_threads() // TRIALS)
    workers = [
        context.Process(target=_work, args=(theirs, settings, trial, device, threads), daemon=True)
        for trial, (_, theirs) in enumerate(pairs)
    ]
    for worker in workers:
        worker.start()

    def step_all(steps: int) -> None:
        for ours, _ in pairs:
            ours.send(steps)
        for ours, _ in pairs:
            assert ours.recv()

    try:
        yield step_all
    finally:
        for worker in workers:  # they hold nothing that has to be put in order
            worker.kill()
            worker.join()


def _work(orders: Connection, settings: Settings, trial: int, device: torch.device, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = train(prepare(settings, trial, device))
    while True:
        _make(rows, orders.recv(), device)
        orders.send(True)


if __name__ == "__main__":
    print(main())
