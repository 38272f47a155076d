"""Trials that are wider than a machine: two nodes of Ray with a core each, and trials of two processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from dino_lab.runs.folder import RunFolder
from dino_lab.sweeps.plan.model import Resources
from dino_lab.sweeps.ray.capacity import Machine, at_once, is_spread, shortage
from dino_lab.sweeps.ray.head_node import lives
from dino_lab.sweeps.ray.spread_trial import worlds

on_ray = pytest.mark.cluster
SPEED = ("images_per_second", "data_wait")
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef", "RAY_worker_niceness": "0"}
# A line on the standard input asks how many cores are free.
CLUSTER = """
import sys
import ray
from ray.cluster_utils import Cluster
cluster = Cluster()
for place in ({"temp_dir": sys.argv[1], "include_dashboard": False}, {}):
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **place)
ray.init(address=cluster.address, log_to_driver=False)
print(cluster.address, flush=True)
for line in sys.stdin:
    print(ray.available_resources().get("CPU", 0), flush=True)
ray.shutdown()
cluster.shutdown()
"""


def test_a_trial_is_spread_only_where_no_machine_has_room_for_it() -> None:
    two, three = Resources(processes=2), Resources(processes=3, cpu=2)
    small = [Machine(1, 0, "a"), Machine(1, 0, "b"), Machine(1, 0, "c")]
    assert is_spread(small, two)
    assert (at_once(small, two), shortage(small, two)) == (1, None)
    assert not is_spread([*small, Machine(2, 0, "d")], two)
    assert at_once([*small, Machine(2, 0, "d")], two) == 1
    assert not is_spread(small, three)
    assert shortage(small, three) == (
        "processes",
        "3 processes with 2 core(s) each for one trial, and all 3 machines together have room for 0",
    )
    assert is_spread([Machine(5, 0), Machine(3, 0)], three)  # two and one
    assert shortage(small, Resources(cpu=2)) == ("cpu", "2 cores for one trial, and a has 1")


def test_each_process_on_gpus_needs_a_gpu() -> None:
    machines, eight = [Machine(64, 4, "a"), Machine(6, 4, "b")], Resources(gpu=8, cpu=2)
    assert shortage(machines, eight) == (
        "gpu",
        "8 processes with 2 core(s) and a GPU each for one trial, and all 2 machines together have room for 7",
    )
    assert is_spread(machines, Resources(gpu=7, cpu=2))
    assert at_once([Machine(64, 4)] * 4, Resources(gpu=8)) == 2


def test_places_count_within_machines() -> None:
    found = worlds("b", ["a", "b", "a"], "tcp://somewhere:1")
    assert [(one.rank, one.local_rank, one.local_size) for one in found] == [
        (0, 0, 2),
        (1, 0, 2),
        (2, 1, 2),
        (3, 1, 2),
    ]
    assert all(one.size == 4 and one.spans_machines for one in found)


class Nodes:
    """Two nodes of Ray on this machine."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short enough for sockets
        alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | alone | RAY,
        )
        self.address = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    @property
    def free(self) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line())

    def family(self, name: str = "") -> list[psutil.Process]:
        """Processes on the nodes, or below one of Ray's whose name begins so."""
        found = psutil.Process(self._process.pid).children(recursive=True)
        if name:
            found = [one for above in found if above.name().startswith(name) for one in above.children(True)]
        return found

    def training(self, name: str = "") -> list[psutil.Process]:
        """Those that have joined a run: copies of a trial server with a connection."""
        return [one for one in self.family(name) if _has_joined(one)]

    def close(self) -> None:
        family = self.family()
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(30)
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(family, 10)  # or they would write into the folder again
        shutil.rmtree(self._folder, ignore_errors=True)


def _has_joined(one: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return "dino_lab.sweeps.processes.trial_server" in one.cmdline() and bool(one.net_connections("tcp"))
    return False


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray")
    found = Nodes()
    yield found
    found.close()


class Sweep:
    """A sweep of the tiny spec, each trial in two processes."""

    def __init__(self, folder: Path, address: str) -> None:
        self.file, self.runs, self.log = folder / "s.yaml", folder / "runs", folder / "log"
        self._address = address

    def start(self, grid: str, *settings: str) -> subprocess.Popen[bytes]:
        self.file.write_text(f"base: tiny.yaml\nmetric: knn.5nn\ngrid: {grid}\nresources: {{processes: 2}}\n")
        words = ["sweep", str(self.file), "--runs", str(self.runs), "--address", self._address]
        words += [word for text in settings for word in ("--set", text)]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dino_lab", *words, "--checkpoint-every", "0"],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | RAY,
            )

    @property
    def folders(self) -> list[RunFolder]:
        return [RunFolder(folder) for folder in sorted(self.runs.glob("tiny/*"))]

    def states(self) -> list[str]:
        return [folder.status().state for folder in self.folders]


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path, nodes: Nodes) -> Sweep:
    return Sweep(tmp_path, nodes.address)


def until(holds: Callable[[], object], what: str, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def rows(folder: Path) -> list[dict[str, float]]:
    found = RunFolder(folder).rows()
    return [{name: value for name, value in row.items() if name not in SPEED} for row in found]


def has_rows(sweep: Sweep, step: int) -> bool:
    return any(row["step"] >= step for folder in sweep.folders for row in folder.rows())


def assert_nothing_is_left(nodes: Nodes, of: Sequence[psutil.Process]) -> None:
    until(lambda: nodes.free == 2, "both cores to be free", 30)
    until(lambda: not any(map(lives, of)), "every process to end", 10)


@on_ray
def test_a_killed_process_is_none_and_rows_are_those_of_one_process(
    sweep: Sweep, nodes: Nodes, tiny_spec: Callable[..., Any], execute: Callable[..., Any], tmp_path: Path
) -> None:
    running = sweep.start("{seed: [0, 1]}", "set={train.epochs: 20, train.log_every: 1}")
    until(lambda: has_rows(sweep, 6), "the first steps")
    both = nodes.training()
    (other,) = nodes.training("ray::_Process")
    assert len(both) == 2
    other.kill()
    assert running.wait(240) == 0, sweep.log.read_text()
    out = sweep.log.read_text()
    assert out.count("its process died; it goes on from its last checkpoint") == 1
    assert out.count("resumed at step") == 1
    assert sweep.states() == ["finished", "finished"]
    assert_nothing_is_left(nodes, both)
    for seed in (0, 1):
        spec = tiny_spec("train.epochs=20", "train.log_every=1", f"seed={seed}")
        alone = execute(spec, runs=tmp_path / "alone").folder
        for a, b in zip(rows(alone)[:8], rows(sweep.runs / "tiny" / alone.name)[:8], strict=True):
            assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
        assert len(rows(alone)) == len(rows(sweep.runs / "tiny" / alone.name)) == 81


@on_ray
def test_a_scheduler_ends_trials_early_and_the_next_has_both_nodes(sweep: Sweep, nodes: Nodes) -> None:
    running = sweep.start(
        "{targets.temperature: [0.2, 0.03, 0.05]}",  # the higher, the more even the targets
        "set={train.epochs: 20, train.log_every: 1, evaluators: []}",
        "metric=loss",
        "scheduler={name: asha, reduction: 2, metric: entropy}",
    )
    assert running.wait(240) == 0, sweep.log.read_text()
    assert sweep.states().count("stopped") >= 1
    assert set(sweep.states()) == {"stopped", "finished"}
    assert "its process died" not in sweep.log.read_text()
    assert_nothing_is_left(nodes, [])


@on_ray
def test_ctrl_c_saves_and_a_lost_actor_is_replaced(sweep: Sweep, nodes: Nodes) -> None:
    running = sweep.start(
        "{seed: [0]}", "set={train.epochs: 100000, train.log_every: 1, evaluators: []}", "metric=loss"
    )
    until(lambda: has_rows(sweep, 6), "the first steps")
    before = nodes.training()
    (actor,) = [one for one in nodes.family() if one.name().startswith("ray::_Process")]
    actor.kill()
    until(lambda: "its process died" in sweep.log.read_text(), "the loss to be told")
    until(lambda: len(nodes.training()) == 2 and not any(map(lives, before)), "the trial to begin again")
    both = nodes.training()
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130, sweep.log.read_text()
    assert "to continue, run the same command again" in sweep.log.read_text()
    (folder,) = sweep.folders
    assert folder.status().state == "interrupted"
    assert folder.status().step >= 5  # it went on, and did not begin anew
    assert (folder.path / "last.pt").exists()
    assert_nothing_is_left(nodes, both)
