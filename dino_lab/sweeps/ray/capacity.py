"""Cores and GPUs of machines, and how many trials fit on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dino_lab.distributed.world import cores
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

    def room(self, resources: Resources) -> int:
        """How many processes of a trial with several fit on the machine, of one trial or of many."""
        by_core = self.cpus // resources.cpu
        return min(by_core, self.gpus) if resources.gpu else by_core

    def at_once(self, resources: Resources) -> int:
        """How many trials run at the same time."""
        by_core = self.cpus // resources.cores
        if not resources.gpu:
            return by_core
        if resources.gpu > 1:
            return min(by_core, self.gpus // resources.ranks)
        return min(by_core, self.gpus * int(1 / resources.gpu + 1e-9))


def shortage(machines: Sequence[Machine], resources: Resources) -> tuple[str, str] | None:
    """The key of `resources` that machines cannot give, not even together, and a message; or None."""
    lacks = [machine.lacks(resources) for machine in sorted(machines, key=lambda one: (-one.gpus, -one.cpus))]
    if None in lacks or is_spread(machines, resources):
        return None
    if len(machines) == 1 or resources.ranks == 1:
        return lacks[0]
    share = f"{resources.cpu} core(s)" + (" and a GPU" if resources.gpu else "")
    return (
        "gpu" if resources.gpu else "processes",
        f"{resources.ranks} processes with {share} each for one trial, and all {len(machines)} machines "
        f"together have room for {_room(machines, resources)}",
    )


def is_spread(machines: Sequence[Machine], resources: Resources) -> bool:
    """Whether the processes of a trial fit on no machine, but on several together."""
    if resources.ranks == 1 or any(machine.lacks(resources) is None for machine in machines):
        return False
    return _room(machines, resources) >= resources.ranks


def at_once(machines: Sequence[Machine], resources: Resources) -> int:
    """How many trials run at the same time on all machines."""
    if is_spread(machines, resources):
        return _room(machines, resources) // resources.ranks
    return sum(machine.at_once(resources) for machine in machines)


def _room(machines: Sequence[Machine], resources: Resources) -> int:
    return sum(machine.room(resources) for machine in machines)


def this_machine() -> Machine:
    """The machine that this process runs on."""
    import torch

    return Machine(cores(), torch.cuda.device_count() if torch.cuda.is_available() else 0)
