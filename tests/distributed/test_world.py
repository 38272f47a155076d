"""How a process learns which one of several it is."""

from __future__ import annotations

import pytest

from dino_lab.distributed.heartbeat import Signs
from dino_lab.distributed.world import ALONE, World, first_node, tasks_per_node, world_of
from dino_lab.errors import UserError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "4,3",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}


def test_torchrun_gives_a_place() -> None:
    world = world_of(TORCHRUN)
    assert world == World(5, 8, 1, 4, "env://")
    assert world.spans_machines
    assert not world_of(TORCHRUN | {"LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8"}).spans_machines


def test_srun_gives_a_place() -> None:
    assert world_of(SRUN) == World(5, 7, 1, 3, "tcp://gpu07:30001")
    assert (
        world_of(SRUN | {"MASTER_ADDR": "gpu07-ib", "MASTER_PORT": "4000"}).meeting == "tcp://gpu07-ib:4000"
    )
    assert world_of(SRUN | TORCHRUN) == world_of(TORCHRUN)  # as submitit exports them


def test_two_steps_of_a_job_meet_at_two_ports() -> None:
    assert world_of(SRUN | {"SLURM_STEP_ID": "1"}).meeting != world_of(SRUN).meeting


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # a batch script, without srun
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_others_are_alone(environment: dict[str, str]) -> None:
    assert world_of(environment) == ALONE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "MASTER_ADDR, MASTER_PORT is not set"),
        ({"RANK": "8"}, "RANK=8 of WORLD_SIZE=8"),
        ({"LOCAL_RANK": "four"}, "LOCAL_RANK=four.*whole numbers"),
    ],
)
def test_half_a_place_is_refused(change: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (TORCHRUN | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        world_of(environment)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu07", "gpu07"), ("gpu[07-09,12],login1", "gpu07"), ("a-b[3,5]", "a-b3"), ("x1,x2", "x1")],
)
def test_the_first_node_of_a_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_tasks_of_each_node() -> None:
    assert tasks_per_node("4(x2),3") == [4, 4, 3]
    assert tasks_per_node("1") == [1]


def test_silence_is_told() -> None:
    now = [0.0]
    signs = Signs(0, 3, clock=lambda: now[0])
    signs.take(["1", "1"])
    now[0] = 50.0
    signs.take(["2", "1"])
    assert not signs.silent(60.0)
    now[0] = 61.0
    signs.take(["3", "1"])  # process 2 has not counted since 0 s
    assert signs.silent(60.0) == "process 2"
    now[0] = 200.0
    assert signs.silent(60.0) == "the first process's machine"
