"""Cores and GPUs of machines, and how many trials fit on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from dino_lab.sweeps.plan.model import Resources


@dataclass(frozen=True)
class Machine:
    """A machine's cores and GPUs that trials can use."""

    cpus: int
    gpus: int
    name: str = "this machine"

    def lacks(self, resources: Resources) -> tuple[str, str] | None:
        """The first key of `resources` that asks for more than the machine has, and a message."""
        if resources.cores > self.cpus:
            return "cpu", f"{resources.cores} cores for one trial, and {self.name} has {self.cpus}"
        if resources.gpu > 0 and not self.gpus:
            return (
                "gpu",
                f"{resources.gpu:g} of a GPU for one trial, and {self.name} has none that can be used",
            )
        if resources.gpu > self.gpus:
            return "gpu", f"{resources.gpu:g} GPUs for one trial, and {self.name} has {self.gpus}"
        return None

    def at_once(self, resources: Resources) -> int:
        """How many trials run at the same time."""
        by_core = self.cpus // resources.cores
        if not resources.gpu:
            return by_core
        if resources.gpu > 1:
            return min(by_core, self.gpus // resources.ranks)
        return min(by_core, self.gpus * int(1 / resources.gpu + 1e-9))


def shortage(machines: Sequence[Machine], resources: Resources) -> tuple[str, str] | None:
    """The key of `resources` that no machine can give, and a message about the largest machine; or None."""
    lacks = [machine.lacks(resources) for machine in sorted(machines, key=lambda one: (-one.gpus, -one.cpus))]
    return None if None in lacks else lacks[0]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    return Machine(cores(), torch.cuda.device_count() if torch.cuda.is_available() else 0)
