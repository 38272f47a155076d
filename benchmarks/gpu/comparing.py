"""How far two devices, or two ways on one, are from each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.gpu.worker import Work
from dino_lab.building.execution import use_tf32

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Comparison:
    """A difference that has to be small: `find` gives it for a device."""

    name: str
    most: float
    find: Callable[[torch.device, bool], float]  # of the device, and whether sizes are those of toys


def compare(work: Work, table: str, comparisons: Sequence[Comparison], seconds: float) -> None:
    """A row for each; one that fails, or takes longer than `seconds`, leaves the others alone."""
    use_tf32(False)
    device = torch.device(work.device)
    for one in comparisons:

        def job(one: Comparison = one) -> None:
            began = time.perf_counter()
            difference = one.find(device, work.toy)
            taken = time.perf_counter() - began
            passed = difference <= one.most  # not for what is no number
            work.row(
                table, comparison=one.name, difference=difference, most=one.most, passed=passed, seconds=taken
            )
            assert passed, f"the difference is {difference:.3g}, at most {one.most:g} is right"

        work.attempt(one.name, job, seconds)


def largest(a: Tensor, b: Tensor) -> float:
    """Of all differences the largest."""
    return float((a.cpu().double() - b.cpu().double()).abs().max())


def relative(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Norm of the differences of all tensors, over that of the second ones."""
    pairs = [(x.detach().cpu().double(), y.detach().cpu().double()) for x, y in zip(a, b, strict=True)]
    differences = sum(float((x - y).square().sum()) for x, y in pairs)
    return (differences / sum(float(y.square().sum()) for _, y in pairs)) ** 0.5
