"""The place of this process among those of a run, and how it meets the others.

Whoever starts several processes says so in their environment: torchrun, Ray Train and submitit in the
variables of torch.distributed (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT),
srun in those of SLURM.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as distributed
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from dino_lab.distributed.control import close_channel, is_known, open_channel
from dino_lab.distributed.heartbeat import heartbeat
from dino_lab.errors import UserError, first_line

LIMIT = timedelta(minutes=30)  # for one exchange inside a step
FIRST_PORT, PORTS = 20_000, 20_000  # where the processes of a SLURM job meet
PATIENCE = timedelta(minutes=10)  # until all processes have come


@dataclass(frozen=True)
class World:
    """Which of the processes of a run this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those of this machine
    local_size: int = 1
    meeting: str = "env://"  # as torch.distributed's init_method

    @property
    def spans_machines(self) -> bool:
        """Whether other processes are on other machines."""
        return self.local_size < self.size


ALONE = World()


def world_of(environment: Mapping[str, str]) -> World:
    """The place that torchrun, Ray Train, submitit or srun gives this process; else a world of one.

    A UserError where the variables contradict each other.
    """
    if "RANK" in environment or "LOCAL_RANK" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return _world(environment, names, "env://")
    # Set for the tasks of srun alone: in a batch script itself there is one process, however many are asked.
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return _world_of_slurm(environment)
    return ALONE


def _world(environment: Mapping[str, str], names: tuple[str, ...], meeting: str) -> World:
    lacking = [name for name in (*names[:2], "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if lacking and environment.get(names[1]) != "1":
        raise UserError(
            f"{names[0]} says that this is one of several processes, but {', '.join(lacking)} is not set; "
            f"unset {names[0]}, or start with torchrun"
        )
    try:
        rank, size = (int(environment[name]) for name in names[:2])
        local_rank = int(environment.get(names[2], rank))
        local_size = int(environment.get(names[3], size))
    except ValueError:
        given = ", ".join(f"{name}={environment[name]}" for name in names if name in environment)
        raise UserError(f"{given}: should be whole numbers") from None
    if not 0 <= rank < size or not 0 <= local_rank < local_size <= size:
        raise UserError(f"{names[0]}={rank} of {names[1]}={size}: no process of so many has this number")
    return World(rank, size, local_rank, local_size, meeting)


def _world_of_slurm(environment: Mapping[str, str]) -> World:
    """Its processes meet on the first node of the step, at a port that follows from the job's number."""
    if "MASTER_ADDR" in environment and "MASTER_PORT" in environment:
        address = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
    else:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment["SLURM_JOB_NODELIST"]
        job = int(environment["SLURM_JOB_ID"]) + 31 * int(environment.get("SLURM_STEP_ID", "0"))
        address = f"{first_node(nodes)}:{FIRST_PORT + job % PORTS}"
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment["SLURM_TASKS_PER_NODE"]
    return World(
        rank=int(environment["SLURM_PROCID"]),
        size=int(environment["SLURM_STEP_NUM_TASKS"]),
        local_rank=int(environment["SLURM_LOCALID"]),
        local_size=tasks_per_node(tasks)[int(environment.get("SLURM_NODEID", "0"))],
        meeting=f"tcp://{address}",
    )


def first_node(nodes: str) -> str:
    """The first host of a SLURM list such as `gpu[07-09,12],login1`."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    if found is None:
        raise UserError(f"SLURM_STEP_NODELIST={nodes}: not a list of nodes")
    return found[1] + (found[2] or "")


def tasks_per_node(text: str) -> list[int]:
    """The tasks of each node, of a SLURM text such as `4(x2),3`."""
    counts: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


@contextmanager
def joined(world: World, device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Be one of the processes of a run; the others are there when it begins.

    `threads` are those of torch on the CPU: without a number, the machine's cores divided by its processes;
    where there is one process, torch's own number.

    After an exception that the others have not heard of the connections stay open until the process ends:
    they should learn of it from whoever started them, not from connections that close.
    """
    if threads is not None or world.size > 1:
        torch.set_num_threads(threads or max(1, cores() // world.local_size))
    os.environ["LOCAL_WORLD_SIZE"] = str(world.local_size)  # by which decoders divide the cores
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _set_interface(world)
    store = _meet(world)
    distributed.init_process_group(
        _backend(world, store, device),
        store=PrefixStore("run", store),
        rank=world.rank,
        world_size=world.size,
        timeout=LIMIT,
    )
    open_channel()
    with heartbeat(store, world.rank, world.size) if world.spans_machines else nullcontext():
        try:
            yield
        except Exception as error:
            if not is_known(error):
                raise
            _leave()
            raise
    _leave()


def _leave() -> None:
    close_channel()
    distributed.destroy_process_group()


def cores() -> int:
    """Cores that this process may use."""
    # A container is often granted fewer than the machine has; macOS cannot tell.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _meet(world: World) -> Store:
    """The store through which the processes find each other, once all have come."""
    try:
        store, _, _ = next(rendezvous(world.meeting, world.rank, world.size, timeout=PATIENCE))
        store.set_timeout(PATIENCE)
        store.set(f"here/{world.rank}", socket.gethostname())
        store.wait([f"here/{i}" for i in range(world.size)], PATIENCE)
    except distributed.DistError as error:
        raise UserError(
            f"process {world.rank} of {world.size}: the others did not come within "
            f"{PATIENCE.total_seconds():.0f} s to {_address(world)} ({first_line(error)})"
        ) from None
    return store


def _address(world: World) -> str:
    if world.meeting == "env://":
        return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return world.meeting.rpartition("//")[2]


def _backend(world: World, store: Store, device: torch.device) -> str:
    """What the processes talk with: gloo on CPUs, NCCL where each has a GPU of its own.

    NCCL refuses two processes on one GPU.
    """
    if device.type != "cuda":
        return "gloo"
    store.set(f"gpu/{world.rank}", str(torch.cuda.get_device_properties(device).uuid))
    gpus = {store.get(f"gpu/{i}") for i in range(world.size)}
    return "cpu:gloo,cuda:nccl" if len(gpus) == world.size else "gloo"


def _set_interface(world: World) -> None:
    """Let processes listen on the loopback interface, those of several machines on the way to the first.

    Otherwise gloo listens where the machine's own name leads to, which often is no way to other machines.
    """
    if not world.spans_machines:
        here = "127.0.0.1"
        os.environ.setdefault("NCCL_SOCKET_IFNAME", _interface(here))
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((_address(world).rpartition(":")[0], 9))  # sends nothing
            except OSError:
                return  # to be said by whoever connects
            here = probe.getsockname()[0]
    if name := _interface(here):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _interface(address: str) -> str:
    """The network interface that has an address; an empty text where none has."""
    found = psutil.net_if_addrs().items()
    return next((name for name, ones in found if any(one.address == address for one in ones)), "")
