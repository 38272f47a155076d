"""Seconds of jobs on any device, in interleaved rounds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

Job = Callable[[], object]


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(job: Job, device: str) -> float:
    """Seconds of a call, until the device has done it."""
    began = time.perf_counter()
    job()
    synchronize(device)
    return time.perf_counter() - began


def interleaved(
    jobs: Mapping[str, Job], device: str, rounds: int, *, warm: int = 1, seconds: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each job in each round, after `warm` rounds that do not count.

    No round begins after `seconds`, but one is always counted.
    """
    synchronize(device)
    began = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(warm + rounds):
        if number > warm and time.perf_counter() - began > seconds:
            break
        for name, job in jobs.items():
            taken = timed(job, device)
            if number >= warm:
                times[name].append(taken)
    return times


def ratios(over: list[float], under: list[float]) -> list[float]:
    """The first over the second, round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]
