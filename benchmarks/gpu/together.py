"""Small trials on one GPU: one after the other, in processes of their own, and packed."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import together
from benchmarks.gpu.worker import Work, spread
from benchmarks.timing import ratios
from dino_lab.spec.file import load

NEEDED = 25.0  # seconds, most of them to start the processes
ASKED = 3.0  # times one at a time, or `pack` is not worth its code
TOY = {
    "a toy": (("backbone={width: 24, depth: 2, heads: 2}", "data.train_images=128", "train.batch_size=16"), 2)
}


def _steps_of_a_trial(settings: together.Settings) -> int:
    """Optimizer steps of a whole trial."""
    spec = load(together.QUICKSTART, settings).spec
    images = spec.data.model_dump()["train_images"]
    return int(images // spec.train.batch_size * spec.train.epochs)


def trials(work: Work, name: str, settings: together.Settings, steps: int) -> None:
    """Interleaved rounds of the three ways."""
    rounds = 1 if work.toy else together.ROUNDS
    rates = together.measure(settings, steps, torch.device(work.device), rounds, work.left() - 10)
    for way, each in rates.items():
        work.row(
            f"{together.TRIALS} trials: {name}",
            how=way,
            trial_steps_per_s=spread(each),
            trials_an_hour=spread(each, 3600 / _steps_of_a_trial(settings)),
            times_one_at_a_time=spread(ratios(each, rates[together.ONE])),
        )
    faster = spread(ratios(rates[together.PACKED], rates[together.ONE]))
    asked = f"at least {ASKED:g} times one at a time"
    work.asked(f"{together.PACKED}, {name}", faster, asked, faster["median"] >= ASKED)


def measure(work: Work) -> None:
    """Each network."""
    for number, (name, (settings, steps)) in enumerate((TOY if work.toy else together.ON_GPU).items()):
        if number and work.left() < NEEDED:
            work.note(f"{together.TRIALS} trials: {name}", "Not measured: no time was left.")
            continue
        work.attempt(name, partial(trials, work, name, settings, steps), 50)
