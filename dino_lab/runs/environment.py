"""Where a run happened: versions, plugins, code and hardware."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from dino_lab.collectives import processes
from dino_lab.registry.discovery import plugins

PACKAGES = ("dino-lab", "torch", "torchvision", "timm", "kornia", "pydantic", "numpy", "pillow", "pyarrow")


def environment(device: torch.device) -> dict[str, Any]:
    """What env.json holds."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "plugins": plugins(),
        "git": _git(),
        "command": sys.argv,
        "directory": _directory(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": processes(),  # that train the run together, of which this is the first
        "threads": torch.get_num_threads(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def _git() -> dict[str, Any] | None:
    """Commit of the folder that the run was started in, and whether files there differ from it."""

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, check=True, cwd=Path.cwd()
        )
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _directory() -> str | None:
    """Where the command was given, which its relative paths start from."""
    try:
        return str(Path.cwd())
    except OSError:  # it was deleted meanwhile
        return None


def _processor() -> str:
    """The processor's name; only Linux tells it in a file."""
    file = Path("/proc/cpuinfo")
    names = [line for line in file.read_text().splitlines() if "model name" in line] if file.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()
