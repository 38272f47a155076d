"""Measure all that asks for a GPU, within nine minutes: correctness first, then speed in order of worth.

    python -m benchmarks.gpu --to FOLDER [--parts NAME,NAME] [--size toy --device cpu] [--cifar FOLDER]

FOLDER/gpu.jsonl has a line for the machine and one for each part, FOLDER/gpu.md the same as a part of
BENCHMARKS.md; both are written again after each part. FOLDER/gpu.log has what parts with a failure said. A
part that fails or takes too long ends by itself.
Exit code 0 if every part went well, 1 if not, 2 where the request was wrong.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.gpu.page import page
from benchmarks.gpu.runner import Part, Result, run_parts
from benchmarks.gpu.worker import Options

TOTAL = 530.0  # seconds; what surrounds the parts takes the rest of nine minutes
HERE = "benchmarks.gpu"
PARTS = (
    Part("kernels", "Kernels, GPU against CPU", f"{HERE}.kernels:measure", 40),
    Part("methods", "Methods, GPU against CPU", f"{HERE}.methods:measure", 45),
    Part("evaluators", "Evaluators, GPU against CPU", f"{HERE}.evaluators:measure", 30),
    Part("processes", "Two processes", f"{HERE}.processes:measure", 30),
    Part("augmentation", "Augmentation", f"{HERE}.augmentation:measure", 45),
    Part("step", "Training step", f"{HERE}.step:measure", 80),
    Part("compiled_step", "Training step, compiled", f"{HERE}.step:measure_compiled", 95),
    Part("cifar", "ResNet-18 on images of CIFAR's size", f"{HERE}.cifar:measure", 45),
    Part("together", "Small trials together", f"{HERE}.together:measure", 45),
    Part("knn", "k-NN", f"{HERE}.knn:measure", 20),
    Part("compiled_cifar", "ResNet-18, compiled", f"{HERE}.cifar:measure_compiled", 30),
    Part("compiled_crops", "Crops by torch, compiled", f"{HERE}.augmentation:measure_compiled", 20),
)
VERSIONS = ("torch", "triton", "torchvision", "timm", "kornia", "numba", "pydantic")


def machine(device: str) -> dict[str, str]:
    """Date, card and versions."""
    found = {"": datetime.datetime.now(tz=datetime.UTC).date().isoformat()}
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
        found["driver"] = _driver()
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["card"] = "none: toy sizes on the CPU, whose times mean nothing"
    found["cores"] = str(os.cpu_count())
    found["Python"] = platform.python_version()
    for name in VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _driver() -> str:
    if (tool := shutil.which("nvidia-smi")) is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.strip().splitlines()[0] if done.stdout.strip() else "unknown"


def write(folder: Path, found: Mapping[str, str], results: Sequence[Result]) -> None:
    """Both files, with what is known so far."""
    lines = [{"machine": found}, *map(asdict, results)]
    (folder / "gpu.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "gpu.md").write_text(page(found, results), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; the exit code."""
    given = _parsed(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: torch finds no CUDA device; --size toy --device cpu tries it without",
            file=sys.stderr,
        )
        return 2
    if given.device == "cpu" and given.size == "full":
        print(
            "benchmarks.gpu: --size full needs --device cuda; for the CPU there is --size toy",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the part is killed
    given.to.mkdir(parents=True, exist_ok=True)
    options = Options(given.size, given.device, 0.0, given.cifar)
    found, results = machine(given.device), []
    for result in run_parts(given.parts, options, given.to, TOTAL):
        results.append(result)
        write(given.to, found, results)
        print(f"{result.part}: {result.seconds:.0f} s, {'ok' if result.ok else 'failed'}", flush=True)
    print(f"{given.to / 'gpu.md'}")
    return 0 if all(result.ok for result in results) else 1


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--parts", type=chosen, default=list(PARTS), metavar="NAME,NAME")
    parser.add_argument("--size", choices=["full", "toy"], default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--cifar", metavar="FOLDER", help="CIFAR-10 as Parquet files")
    return parser.parse_args(arguments)


def chosen(text: str) -> list[Part]:
    """The parts of these names, in their own order."""
    names = text.split(",")
    if wrong := set(names) - {part.name for part in PARTS}:
        known = ", ".join(part.name for part in PARTS)
        raise argparse.ArgumentTypeError(f"no part {', '.join(sorted(wrong))}; there are {known}")
    return [part for part in PARTS if part.name in names]


if __name__ == "__main__":
    sys.exit(main())
