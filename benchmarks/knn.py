"""k-NN of the evaluator against scikit-learn's brute force, on features that are there: time and memory.

Each call is a process of its own, so that its peak memory is its own; what loading and the features take is
in it. The accuracies must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy
import torch

from benchmarks.report import section, spread, table
from dino_lab.components.evaluators.knn import Knn
from dino_lab.evaluation.outputs import Split

ROUNDS = 3
SIZE = (50_000, 10_000, 384)  # training and test images, width
CLASSES, K, TEMPERATURE = 100, 20, 0.07
Precision = Literal["float32", "bfloat16"]


def features(bank: int, test: int, width: int) -> dict[str, Split]:
    """Noisy classes that all point much the same way, as features of one network do; float32."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, width, generator=generator)
    centers += 8 * torch.randn(width, generator=generator)

    def draw(count: int) -> Split:
        labels = torch.randint(CLASSES, (count,), generator=generator)
        noise = torch.randn(count, width, generator=generator)
        return Split(labels, {"features": noise.mul_(4).add_(centers[labels])})

    return {"bank": draw(bank), "test": draw(test)}


def ours(splits: dict[str, Split], precision: Precision) -> float:
    """Accuracy by the evaluator."""
    encode: Any = SimpleNamespace(split=lambda data, name: splits[name])
    data: Any = SimpleNamespace(classes=CLASSES)
    return Knn(k=(K,), temperature=TEMPERATURE, precision=precision).forward(encode, data)[f"{K}nn"]


def theirs(splits: dict[str, Split]) -> float:
    """Accuracy by scikit-learn."""
    from sklearn.neighbors import KNeighborsClassifier

    bank, test = splits["bank"], splits["test"]
    model = KNeighborsClassifier(
        K, weights=lambda d: numpy.exp((1 - d) / TEMPERATURE), metric="cosine", algorithm="brute"
    )
    model.fit(bank.features.numpy(), bank.labels.numpy())
    return float(model.score(test.features.numpy(), test.labels.numpy()))


BASE = "scikit-learn, brute force"
WAYS: dict[str, Callable[[dict[str, Split]], float]] = {
    BASE: theirs,
    "dino-lab, float32": partial(ours, precision="float32"),
    "dino-lab, bfloat16": partial(ours, precision="bfloat16"),
}


def measure(way: str, size: Sequence[int]) -> dict[str, float]:
    """Seconds, accuracy and peak memory of this process in GiB."""
    splits = features(*size)
    began = time.perf_counter()
    accuracy = WAYS[way](splits)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "accuracy": accuracy, "peak": _peak()}


def _peak() -> float:
    """Most memory that this process had, in GiB; getrusage would count what its parent had at the fork."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(line.split()[1]) / 2**20


def _in_process(way: str, size: Sequence[int]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.knn", "--way", way, "--size", *map(str, size)]
    # One after the other in one environment: all see the same cores.
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(os.environ)).stdout
    return json.loads(out)


def main(size: Sequence[int] = SIZE, rounds: int = ROUNDS) -> str:
    """Interleaved rounds of all."""
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, results in found.items():
            results.append(_in_process(way, size))
    base = [result["seconds"] for result in found[BASE]]
    accuracies = {way: results[0]["accuracy"] for way, results in found.items()}
    # A tie of rounding may fall either way.
    assert max(accuracies.values()) - min(accuracies.values()) < 1e-3, accuracies
    lines = [
        [
            way,
            spread([result["seconds"] for result in results]),
            spread([b / result["seconds"] for b, result in zip(base, results, strict=True)]),
            f"{max(result['peak'] for result in results):.2f}",
            f"{accuracies[way]:.4f}",
        ]
        for way, results in found.items()
    ]
    header = [
        "k-NN",
        "seconds, median (range)",
        "times scikit-learn, in pairs",
        "peak memory, GiB",
        "accuracy",
    ]
    bank, test, width = size
    title = f"k-NN: {bank:,} x {test:,} features of width {width}, k = {K}"
    native = "has" if torch.cpu._is_avx512_bf16_supported() else "has no"
    text = table(header, lines) + f"\n\nThis processor {native} bfloat16 instructions (AVX-512)."
    return section(title, "python -m benchmarks.knn", text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, metavar=("BANK", "TEST", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--way", choices=list(WAYS), help="only this, as JSON")
    given = parser.parse_args()
    if given.way:
        print(json.dumps(measure(given.way, given.size)))
    else:
        print(main(given.size, given.rounds))
