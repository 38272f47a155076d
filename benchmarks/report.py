"""Shared by the benchmarks: the machine in words, medians with their spread, and Markdown tables."""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Sequence
from importlib import metadata

import torch

from dino_lab.runs.environment import environment


def hardware() -> str:
    """Processor, cores, versions and date, in one line."""
    env = environment(torch.device("cpu"))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "timm", "kornia"))
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return (
        f"{today}, {env['processor']}, {os.cpu_count()} cores, {env['memory_gib']} GiB, "
        f"Python {env['python']}, {versions}"
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (lowest to highest, n = count)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}, n = {len(values)})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def section(title: str, command: str, body: str) -> str:
    """A part of BENCHMARKS.md."""
    return f"## {title}\n\n`{command}`, {hardware()}\n\n{body}\n"
