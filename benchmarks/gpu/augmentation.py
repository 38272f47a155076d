"""Crops on the GPU by Triton, by torch, compiled, and by Kornia; beside the step that waits for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import step
from benchmarks.augment import pictures
from benchmarks.augment_peers import Crops, Setting, dino_lab, kornia
from benchmarks.gpu.profiling import counted, launches
from benchmarks.gpu.worker import Work, spread
from benchmarks.timing import Job, interleaved, ratios, timed
from dino_lab.kernels.crops import by_batch, by_graph, passes
from dino_lab.training.loop import train

LAUNCHES, SHARE, OVER_KORNIA = 20, 5.0, 20.0  # asked
OURS, TORCH, COMPILED, KORNIA = "dino-lab, Triton", "dino-lab, torch", "dino-lab, torch compiled", "Kornia"
IMAGENET = Setting("2 x 224 + 8 x 96 pixels, batch 256", 256, 224, 96, 8, batch=256)
CIFAR = Setting("2 x 32 pixels, batch 512", 32, 32, 16, 0, batch=512)
TOY = (
    Setting("2 x 32 + 2 x 16 pixels, batch 4", 36, 32, 16, 2, batch=4),
    Setting("2 x 16 pixels, batch 8", 16, 16, 8, 0, batch=8),
)
TOY_STEP = step.Setting(
    "a toy",
    "cpu",
    (
        "backbone={width: 24, depth: 2, heads: 2}",
        "head={hidden: 32, bottleneck: 16, dim: 64}",
        "train.batch_size=4",
    ),
    rounds=2,
    large=64,
)


@contextmanager
def made_by(kernels: Any) -> Iterator[None]:
    """Inside, crops are made by these kernels."""
    with patch.object(passes, "_kernels", lambda x: kernels):
        yield


def _made_by(kernels: ModuleType, crops: Callable[[Tensor], Crops], images: Tensor) -> Job:
    def job() -> Crops:
        with made_by(kernels):
            return crops(images)

    return job


@dataclass
class _Jobs:
    """What is timed at one setting."""

    work: Work
    setting: Setting
    jobs: dict[str, Job]

    def rows(self, rounds: int, seconds: float) -> dict[str, list[float]]:
        """Times of all, as a table; nothing else is compared with what failed."""
        times = interleaved(self.jobs, self.work.device, rounds, warm=2, seconds=seconds)
        for name, each in times.items():
            self.work.row(
                f"{self.setting.name}, of {self.setting.pixels} x {self.setting.pixels}",
                crops_by=name,
                ms=spread(each, 1000),
                times_the_first=spread(ratios(each, times[next(iter(times))])),
            )
        return times


def _ours(work: Work) -> str:
    return OURS if work.on_gpu else "dino-lab, Numba"


def eager(work: Work, setting: Setting) -> None:
    """Triton, torch and Kornia; on a CPU its own kernels."""
    device = torch.device(work.device)
    images = pictures(setting.batch, setting.pixels).to(device)
    crops = dino_lab(setting, device)
    jobs: dict[str, Job] = {
        _ours(work): partial(crops, images),
        TORCH: _made_by(by_batch, crops, images),
        KORNIA: partial(kornia(setting, device), images),
    }
    times = _Jobs(work, setting, jobs).rows(2 if work.toy else 15, 8)
    if setting is IMAGENET:
        over = spread(ratios(times[KORNIA], times[_ours(work)]))
        asked = f"at least {OVER_KORNIA:g}"
        work.asked("augmentation, times faster than Kornia", over, asked, over["median"] >= OVER_KORNIA)
    with counted(work.device) as profile:
        crops(images)
    if work.on_gpu:
        found = launches(profile)
        work.note(
            f"{setting.name}, of {setting.pixels} x {setting.pixels}",
            f"dino-lab, Triton: {found} launches a batch.",
        )
        if setting is IMAGENET:
            work.asked("launches of the augmentation", found, f"at most {LAUNCHES}", found <= LAUNCHES)


def graph(work: Work, setting: Setting) -> None:
    """Torch's way compiled, beside the GPU's own kernels."""
    device = torch.device(work.device)
    images = pictures(setting.batch, setting.pixels).to(device)
    crops = dino_lab(setting, device)
    table = f"Compiled: {setting.name}"
    job = _made_by(by_graph, crops, images)
    first = timed(job, work.device)
    times = interleaved({OURS: partial(crops, images), COMPILED: job}, work.device, 15, warm=2, seconds=6)
    for name, each in times.items():
        work.row(
            table, crops_by=name, ms=spread(each, 1000), times_the_first=spread(ratios(each, times[OURS]))
        )
    work.note(table, f"Seconds of the first batch, which compiles it: {first:.1f}.")


def share(work: Work, trained: step.Setting, setting: Setting) -> None:
    """Share of a step in bfloat16 that goes to its crops."""
    device, batch = torch.device(work.device), step.batch_size(trained)
    images = pictures(batch, setting.pixels).to(device)
    rows = train(step.prepare(trained, step.WAYS[step.HALF]))
    crops = dino_lab(replace(setting, batch=batch), device)
    jobs: dict[str, Job] = {"crops": partial(crops, images), "step": lambda: next(rows)}
    times = interleaved(jobs, work.device, 2 if work.toy else 15, warm=2, seconds=10)
    part = [100 * a / (a + b) for a, b in zip(times["crops"], times["step"], strict=True)]
    table = f"Share of a step: {trained.title}"
    for name, each in times.items():
        work.row(table, what=name, ms=spread(each, 1000))
    figure, found = "augmentation, % of a ViT-S/16 step in bfloat16", spread(part)
    work.asked(figure, found, f"at most {SHARE:g}", found["median"] <= SHARE)


def measure(work: Work) -> None:
    """Both settings, and the share."""
    settings = TOY if work.toy else (IMAGENET, CIFAR)
    trained = TOY_STEP if work.toy else step.ON_GPU
    trained = replace(trained, device=work.device)
    work.attempt("crops of large images", lambda: eager(work, settings[0]), 25)
    work.attempt("share", lambda: share(work, trained, settings[0]), 25)
    work.attempt("crops of small images", lambda: eager(work, settings[1]), 15)


def measure_compiled(work: Work) -> None:
    """Torch's way to make crops, compiled; last of all, as Triton's kernels take its place."""
    if work.on_gpu:
        work.attempt("compiled crops", lambda: graph(work, TOY[0] if work.toy else IMAGENET), work.left())
    else:
        work.note("Compiled", "Compiled crops are measured on a GPU alone.")
