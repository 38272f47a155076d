"""Multi-crop augmentation against what a user would take instead, on the same number of cores.

What works on whole batches runs in one process with a thread for each core; what takes one image at a time
runs in as many processes with one thread each, which share the batch and keep their crops: sending them costs
them nothing here. Every crop is normalised. Reading and decoding are not part of it. dino-lab runs as
`dino-lab run` starts it, with large pages of memory; the others as their users start them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from multiprocessing.pool import Pool

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import step
from benchmarks.augment_peers import BATCHED, PEERS, Crops, Setting, dino_lab, kornia
from benchmarks.report import section, spread, table
from benchmarks.timing import Job, interleaved, ratios
from dino_lab.components.data._labelled import IMAGENET_MEAN, IMAGENET_STD
from dino_lab.training.loop import train

ROUNDS = {"ImageNet": 7, "CIFAR": 15}
SETTINGS = (
    Setting("ImageNet", pixels=256, global_size=224, local_size=96, local_views=8),
    Setting("CIFAR", pixels=32, global_size=32, local_size=16, local_views=6),
)
ASKED = {  # times faster than
    ("ImageNet", "Kornia"): 5,
    ("ImageNet", "Pillow, as facebookresearch/dino"): 2,
    ("CIFAR", "Kornia"): 7,
    ("CIFAR", "Pillow, as facebookresearch/dino"): 15,
}
GREY_SHARE = 0.2
OURS = "dino-lab"
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # see benchmarks/__init__.py


def pictures(number: int, pixels: int) -> Tensor:
    """Images uint8 [N, 3, H, W] with coarse and fine structure, as photographs have."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.rand(number, 3, s, s, generator=generator) for s in (4, 16, pixels)]
    parts = [F.interpolate(level, (pixels, pixels), mode="bilinear") for level in levels]
    return (255 * (0.5 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2])).byte()


def missing(name: str) -> str | None:
    """Why a peer cannot be measured."""
    if name == "lightly" and find_spec("lightly") is None:
        return "not installed (pip install lightly)"
    return None


def main(cores: int = 2) -> str:
    """Interleaved rounds of all peers at both sizes."""
    texts = [_measure(setting, cores) for setting in SETTINGS]
    text = "\n\n".join(texts)
    text += (
        f"\n\nCores: {cores}. dino-lab and Kornia in one process with a thread for each, the others in a "
        "process with one thread for each. Kornia does not smooth what it shrinks; the others do. "
        "dino-lab runs as `dino-lab run` starts it, with large pages of memory, the others as their users "
        "start them."
    )
    text = section(
        "Augmentation: DINO's multi-crop, batch 64 on the CPU", "python -m benchmarks.augment", text
    )
    return text + (f"\n{on_gpu(step.ON_GPU, SETTINGS[0])}" if torch.cuda.is_available() else "")


def on_gpu(trained: step.Setting, setting: Setting) -> str:
    """Crops of a batch on the device of `trained`, beside the training step that waits for them."""
    device, batch = torch.device(trained.device), step.batch_size(trained)
    images = pictures(batch, setting.pixels).to(device)
    rows = train(step.prepare(trained, step.WAYS[step.HALF]))
    rest = "training step in bfloat16, without them"
    jobs: dict[str, Job] = {
        OURS: partial(dino_lab(setting, device), images),
        "Kornia": partial(kornia(setting, device), images),
        rest: lambda: next(rows),
    }
    times = interleaved(jobs, trained.device, trained.rounds, warm=2)
    lines = [
        [name, spread([1000 * t for t in each], 1), spread(ratios(each, times[OURS]), 1)]
        for name, each in times.items()
    ]
    share = spread([100 * a / (a + b) for a, b in zip(times[OURS], times[rest], strict=True)], 1)
    text = table(["", "ms a batch, median (range)", "times dino-lab's, in pairs"], lines)
    text += f"\n\nShare of a step that makes its own crops: {share} %. Asked: 20 times Kornia, at most 5 %."
    return section(f"Augmentation on a GPU: {trained.title}", "python -m benchmarks.augment", text)


def _measure(setting: Setting, cores: int) -> str:
    images = pictures(setting.batch, setting.pixels)
    skipped = {name: reason for name in PEERS if (reason := missing(name))}
    torch.set_num_threads(cores)
    with _processes(1, threads=cores) as one, _processes(cores, threads=1) as many:
        jobs: dict[str, Callable[[], object]] = {OURS: partial(PEERS[OURS](setting), images)}
        for name in (name for name in PEERS if name not in (OURS, *skipped)):
            jobs[name] = _job(*((one, 1) if name in BATCHED else (many, cores)), name, setting)
        checks = {name: _check(name, setting, images) for name in jobs}
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(ROUNDS[setting.name]):
            for name, job in jobs.items():
                job()  # not timed: in a training loop batch follows batch, here another's came between
                began = time.perf_counter()
                job()
                times[name].append((time.perf_counter() - began) / setting.batch)
    rows = [_row(setting, name, times, checks[name]) for name in jobs]
    rows += [[name, f"skipped: {reason}", "", "", "", ""] for name, reason in skipped.items()]
    title = f"2 x {setting.global_size} + {setting.local_views} x {setting.local_size} pixels"
    header = ["of images of", "ms an image, median (range)", "times dino-lab's, in pairs", "asked"]
    header += ["grey crops", "difference of neighbours by view, in 1/255: global, global, local"]
    header[0] = f"{title} of {setting.pixels} x {setting.pixels}"
    return table(header, rows)


def _row(setting: Setting, name: str, times: dict[str, list[float]], check: list[str]) -> list[str]:
    ratios = [theirs / ours for theirs, ours in zip(times[name], times[OURS], strict=True)]
    asked = ASKED.get((setting.name, name))
    milliseconds = spread([1000 * t for t in times[name]], 3 if setting.name == "CIFAR" else 2)
    return [name, milliseconds, spread(ratios, 1), f"at least {asked}" if asked else "", *check]


@contextmanager
def _processes(count: int, threads: int) -> Iterator[Pool]:
    ours = os.environ[LARGE_PAGES]
    os.environ[LARGE_PAGES] = "0"
    # Spawned, not forked: a fork of a process with threads of OpenMP may hang.
    with multiprocessing.get_context("spawn").Pool(count, torch.set_num_threads, (threads,)) as pool:
        os.environ[LARGE_PAGES] = ours
        assert pool.map(os.getenv, [LARGE_PAGES] * count) == ["0"] * count
        yield pool


def _job(pool: Pool, parts: int, name: str, setting: Setting) -> Callable[[], object]:
    work = [(name, setting, range(part, setting.batch, parts)) for part in range(parts)]
    return lambda: pool.starmap(_share, work, chunksize=1)


_PREPARED: dict[tuple[str, str], tuple[Callable[[Tensor], Crops], Tensor]] = {}


def _share(name: str, setting: Setting, share: range) -> None:
    """In a process: the crops of some images of the batch."""
    if (name, setting.name) not in _PREPARED:
        _PREPARED[name, setting.name] = PEERS[name](setting), pictures(setting.batch, setting.pixels)
    crops, images = _PREPARED[name, setting.name]
    crops(images[share.start :: share.step])


def _check(name: str, setting: Setting, images: Tensor) -> list[str]:
    """That the crops are as many and as large as asked for, and grey as often; what else they look like."""
    crops = PEERS[name](setting)(images)
    assert [tuple(crop.shape) for crop in crops] == [
        (setting.batch, 3, size, size) for size in setting.sizes
    ], name
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = [crop * std + mean for crop in crops]
    grey = torch.cat([(v.amax(1) - v.amin(1)).amax(dim=(1, 2)) < 1e-3 for v in x]).float()
    tolerance = 5 * (GREY_SHARE * (1 - GREY_SHARE) / len(grey)) ** 0.5
    assert abs(grey.mean() - GREY_SHARE) < tolerance, (name, float(grey.mean()))
    step = [255 * float((v[..., 1:] - v[..., :-1]).abs().mean()) for v in x]
    local = sum(step[2:]) / len(step[2:])
    return [f"{float(grey.mean()):.2f}", f"{step[0]:.1f}, {step[1]:.1f}, {local:.1f}"]


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))  # python -m benchmarks.augment 1: on one core
