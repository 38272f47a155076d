"""Exact k-NN on the GPU: the evaluator, all cosines at once by torch, and the evaluator on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.worker import Work, spread
from benchmarks.knn import CLASSES, SIZE, TEMPERATURE, K, features, ours
from benchmarks.timing import interleaved, ratios, timed
from dino_lab.evaluation.outputs import Split

FULL, HALF, PLAIN = "evaluator, float32", "evaluator, bfloat16 candidates", "torch, all cosines at once"
ON_CPU = "evaluator on the CPU, float32"
TOY = (600, 200, 32)


def plain(splits: dict[str, Split]) -> float:
    """Accuracy as one would write it down, with all cosines in memory."""
    bank, test = splits["bank"], splits["test"]
    cosines = F.normalize(test.features, dim=1) @ F.normalize(bank.features, dim=1).T
    values, index = cosines.topk(K)
    votes = torch.zeros(len(cosines), CLASSES, device=cosines.device)
    votes.scatter_add_(1, bank.labels[index], (values / TEMPERATURE).exp())
    return float((votes.argmax(1) == test.labels).float().mean())


def search(work: Work) -> None:
    """Interleaved rounds; the accuracies must agree."""
    size = TOY if work.toy else SIZE
    device = torch.device(work.device)
    here = features(*size)
    there = {
        name: Split(
            its.labels.to(device), {key: value.to(device) for key, value in its.representations.items()}
        )
        for name, its in here.items()
    }
    jobs: dict[str, Callable[[], float]] = {
        FULL: partial(ours, there, "float32"),
        HALF: partial(ours, there, "bfloat16"),
        PLAIN: partial(plain, there),
    }
    on_cpu: Callable[[], float] = partial(ours, here, "float32")
    accuracies = {name: job() for name, job in jobs.items()} | {ON_CPU: on_cpu()}
    times = interleaved(jobs, work.device, 3 if work.toy else 9, seconds=8)
    times[ON_CPU] = [timed(on_cpu, "cpu")]
    bank, test, width = size
    table = f"k-NN: {bank:,} x {test:,} features of width {width}, k = {K}"
    for name, each in times.items():
        same = abs(accuracies[name] - accuracies[ON_CPU]) <= 1e-3  # a tie of rounding may fall either way
        work.row(
            table,
            by=name,
            ms=spread(each, 1000),
            times_the_evaluator=spread(ratios(each, times[FULL][: len(each)])),
            accuracy=accuracies[name],
            passed=same,
        )


def measure(work: Work) -> None:
    """One table."""
    work.attempt("k-NN", lambda: search(work), 25)
