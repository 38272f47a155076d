"""The real thing: a cluster of its own, processes that are killed, sockets that are looked at."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.testing import assert_allclose
from safetensors.torch import load_file

from dino_lab.cli import app as cli
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import read_status
from dino_lab.sweeps.plan.plan import SWEEPS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed"),
]

BASE = """\
data: {name: shapes, train_images: 192, test_images: 48, size: 16}
augment: {name: multicrop, global_size: 16, local_size: 8, local_views: 2}
backbone: {name: vit, width: 24, depth: 2, heads: 2, patch: 4}
head: {name: prototypes, hidden: 32, bottleneck: 16, dim: 32}
teacher: {name: ema}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw, lr: 1e-3}
train: {epochs: 20, batch_size: 24, log_every: 2}
evaluators: [{name: knn, k: [5]}]
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
SELDOM = ("--checkpoint-every", "3600")  # where no process is killed: a checkpoint takes as long as a step
SWEEP = """\
base: base.yaml
metric: knn.5nn
grid: {targets.momentum: [0, 0.9]}
"""


class Sweep:
    """One sweep in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "base.yaml").write_text(BASE)
        self.file, self.runs = folder / "s.yaml", folder / "runs"
        self.file.write_text(SWEEP)
        self.log = folder / "log"

    def command(self, *arguments: str) -> list[str]:
        return ["sweep", str(self.file), "--runs", str(self.runs), "--checkpoint-every", "0", *arguments]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        with self.log.open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dino_lab", *self.command(*arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            )

    def run(self, *arguments: str, **environment: str) -> str:
        assert self.start(*arguments, **environment).wait(120) == 0, self.log.read_text()
        return self.log.read_text()

    def scores(self) -> list[tuple[str, str]]:
        (folder,) = (self.runs / SWEEPS / "s").iterdir()
        return [
            (row["arm"], row["mean"])
            for row in csv.DictReader((folder / "table.csv").read_text().splitlines())
        ]

    def weights(self) -> dict[str, bytes]:
        """What was learned, by spec and tensor, bit for bit."""
        return {
            f"{file.parent.name} {name}": tensor.numpy().tobytes()
            for file in self.runs.glob("base/*/backbone.safetensors")
            for name, tensor in load_file(file).items()
        }

    def steps(self) -> list[int]:
        return [
            max((int(row["step"]) for row in RunFolder(folder).rows()), default=0)
            for folder in sorted(self.runs.glob("base/*"))
        ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """The same sweep, one trial after the other in one process."""
    sweep = Sweep(tmp_path_factory.mktemp("inline"))
    sweep.run("--executor", "inline", *SELDOM)
    return sweep


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def until(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def tree(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def trials(process: subprocess.Popen[str], runs: Path) -> list[psutil.Process]:
    """Those that train: they hold the lock of a run folder."""
    found = []
    for one in tree(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(Path(file.path).match(f"{runs}/*/*/lock") for file in one.open_files()):
                found.append(one)
    return found


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_a_worker_is_killed_and_its_trial_goes_on(sweep: Sweep, undisturbed: Sweep) -> None:
    running = sweep.start()
    until(lambda: len(sweep.steps()) == 2 and min(sweep.steps()) > 20, "both trials")
    family = tree(running)

    listening = [
        (one.name(), connection.laddr.ip)
        for one in [psutil.Process(running.pid), *family]
        if one.is_running()
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, listening
    (folder,) = Path("/tmp").glob(f"dl-{running.pid}-*")
    assert folder.stat().st_mode & 0o077 == 0  # nor do other users reach the sockets of files

    training = trials(running, sweep.runs)
    assert len(training) == 2
    worker, _ = [one for one in family if one.name().startswith("ray::ImplicitFunc")]
    worker.send_signal(signal.SIGKILL)
    until(lambda: len(alive(training)) == 1, "the killed worker's own trial to end", 10)
    assert running.wait(120) == 0, sweep.log.read_text()
    out = sweep.log.read_text()
    assert "its process died; it goes on from its last checkpoint" in out
    assert "resumed at step" in out
    assert sweep.scores() == undisturbed.scores()
    assert sweep.weights() == undisturbed.weights() != {}
    # Nothing of Ray is printed, none of its processes nor its folder is left.
    words = out.replace(str(sweep.runs), "").lower().splitlines()
    assert not [line for line in words if "ray" in line or "tune" in line]
    until(lambda: not alive(family), "every process to end", 30)
    assert not list(Path("/tmp").glob(f"dl-{running.pid}-*"))


@pytest.mark.cluster
def test_a_stack_whose_process_is_killed_goes_on(sweep: Sweep, tmp_path: Path) -> None:
    settings = ("--set", "stack=2")
    whole = Sweep(tmp_path / "whole")
    whole.run("--executor", "inline", *settings, *SELDOM)
    running = sweep.start(*settings)
    until(lambda: len(sweep.steps()) == 2 and min(sweep.steps()) > 20, "both trials")
    (training,) = set(trials(running, sweep.runs))
    training.kill()
    assert running.wait(120) == 0, sweep.log.read_text()
    out = sweep.log.read_text()
    assert out.count("its process died; it goes on from its last checkpoint") == 2
    assert out.count("resumed at step") == 2
    assert "(2 of 2)" in out
    # Not bit for bit: killed between two checkpoints, one goes on alone, and adds up in another order.
    found, wanted = sweep.weights(), whole.weights()
    assert found.keys() == wanted.keys()
    assert len(found) > 20
    for name, tensor in found.items():
        assert_allclose(np.frombuffer(tensor, "f4"), np.frombuffer(wanted[name], "f4"), rtol=0.02, atol=1e-4)


@pytest.mark.cluster
def test_the_driver_is_killed_and_the_same_command_goes_on(sweep: Sweep, undisturbed: Sweep) -> None:
    running = sweep.start()
    until(lambda: len(sweep.steps()) == 2 and min(sweep.steps()) > 20, "both trials")
    family = tree(running)
    assert len(trials(running, sweep.runs)) == 2
    running.kill()
    running.wait()
    until(lambda: not alive(family), "every process to end", 20)
    before = sweep.steps()
    out = sweep.run(*SELDOM)
    assert out.count("resumed at step") == 2
    resumed = [int(line.rpartition(" ")[2]) for line in out.splitlines() if "resumed at step" in line]
    assert all(abs(a - b) <= 2 for a, b in zip(sorted(resumed), sorted(before), strict=True))
    assert sweep.scores() == undisturbed.scores()
    assert sweep.weights() == undisturbed.weights() != {}
    assert not list(Path("/tmp").glob(f"dl-{running.pid}-*"))  # removed by the second


@pytest.mark.parametrize(
    "scheduler",
    [
        "{name: asha, reduction: 2, metric: effective_rank}",
        pytest.param("{name: median, metric: effective_rank}", marks=pytest.mark.cluster),
    ],
)
def test_a_scheduler_ends_the_weak_early(
    sweep: Sweep, scheduler: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = "[3.0e-3, 1.0e-3, 1.0e-2, 1.0e-9, 3.0e-2, 1.0e-8]"
    sweep.file.write_text(SWEEP.replace("targets.momentum: [0, 0.9]", f"optim.lr: {rates}"))
    asked = ["--set", "train.epochs=10", "--set", f"scheduler={scheduler}", *SELDOM]
    out = sweep.run(*asked)
    endings = [read_status(folder) for folder in sweep.runs.glob("base/*")]
    assert {ending.state for ending in endings} == {"finished", "stopped"}
    assert all(ending.step < 80 for ending in endings if ending.state == "stopped")
    assert len(sweep.scores()) == 6
    assert out.count(": stopped") == sum(ending.state == "stopped" for ending in endings)
    monkeypatch.setattr("os.environ", dict(os.environ))  # which is set for Ray
    assert cli.main(sweep.command(*asked)) == 0
    assert "6 trials, 6 of them done before" in capsys.readouterr().out


@pytest.mark.cluster
def test_optuna_chooses_while_trials_run(sweep: Sweep) -> None:
    pytest.importorskip("optuna")
    space = "search: {name: optuna, samples: 4}\nspace: {optim.lr: {log_uniform: [1.0e-4, 1.0e-2]}}"
    sweep.file.write_text(SWEEP.replace("grid: {targets.momentum: [0, 0.9]}", space))
    asked = ["--set", "train.epochs=2", *SELDOM]
    out = sweep.run(*asked)
    assert "5 of 5 trials" in out
    assert len(sweep.scores()) == 5
    assert out.count(": finished") == 5
    assert "6 of 6 trials" in sweep.run(*asked, "--set", "search.samples=5")


def test_ctrl_c_saves_first_and_says_how_to_go_on(sweep: Sweep) -> None:
    running = sweep.start("--set", "train.epochs=100000", *SELDOM)
    until(lambda: len(sweep.steps()) == 2 and min(sweep.steps()) > 2, "both trials")
    family = tree(running)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130, sweep.log.read_text()
    out = sweep.log.read_text()
    assert "to continue, run the same command again" in out
    assert len(list(sweep.runs.glob("base/*/last.pt"))) == 2
    until(lambda: not alive(family), "every process to end", 30)


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A cluster that somebody else has started, on this machine alone, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short enough for sockets
    alone = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    alone |= {"RAY_worker_niceness": "0"}  # or whatever else runs here comes first
    options = ["--node-ip-address", "127.0.0.1", "--port", port, "--num-cpus", "2", "--temp-dir", folder]
    with (tmp_path / "ray.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options),
                *("--include-dashboard=false", "--object-store-memory", str(100 << 20)),
            ],
            stdout=log,
            stderr=log,
            text=True,
            env=os.environ | alone | TOKEN,
        )
    until(lambda: "Ray runtime started" in (tmp_path / "ray.log").read_text(), "the cluster")
    family = tree(process)
    yield process, f"127.0.0.1:{port}"
    for one in tree(process):
        one.kill()
    process.kill()
    process.wait()
    until(lambda: not alive(family), "the cluster to end", 10)
    shutil.rmtree(folder)


@pytest.mark.cluster
def test_a_cluster_that_is_there_is_joined_and_left_as_it_was(
    tmp_path: Path, joined: tuple[subprocess.Popen[str], str]
) -> None:
    cluster, address = joined
    short = ["--set", "train.epochs=10"]
    there = ["--address", address, *short]
    sweep, undisturbed = Sweep(tmp_path / "joined"), Sweep(tmp_path / "inline")
    assert sweep.start(*there, **{**TOKEN, "RAY_AUTH_TOKEN": "f" * 32}).wait(20) == 2
    (line,) = sweep.log.read_text().splitlines()
    assert line.startswith(f"--address {address}: the cluster has another token; ")
    assert not sweep.runs.exists()

    running = sweep.start(*there, **TOKEN)
    until(lambda: len(sweep.steps()) == 2 and min(sweep.steps()) > 10, "both trials")
    training = trials(cluster, sweep.runs)
    workers = [one.pid for one in tree(cluster) if one.name().startswith("ray::ImplicitFunc")]
    assert len(workers) == 2
    running.kill()
    running.wait()
    out = sweep.run(*there, **TOKEN)
    undisturbed.run("--executor", "inline", *short, *SELDOM)
    assert out.count("resumed at step") == 2
    assert "2 of 2 trials" in out
    assert sweep.scores() == undisturbed.scores()
    assert sweep.weights() == undisturbed.weights() != {}
    assert not alive(training)
    assert cluster.poll() is None
    until(
        lambda: not [one for one in tree(cluster) if "dino_lab" in " ".join(one.cmdline())],
        "all trials to end",
        10,
    )
    assert not [folder for pid in workers for folder in Path("/tmp").glob(f"dl-{pid}-*")]


@pytest.mark.cluster
def test_trials_of_two_processes_and_their_early_end(sweep: Sweep, undisturbed: Sweep) -> None:
    """Both cores belong to one trial at a time: one that left a process, or a core, would stop the sweep."""
    sweep.run("--set", "resources={processes: 2}", *SELDOM)
    for (arm, score), (same, alone) in zip(sweep.scores(), undisturbed.scores(), strict=True):
        assert arm == same
        assert abs(float(score) - float(alone)) <= 1 / 48 + 1e-9  # one image

    early = ["grid.seed=[0, 1, 2]", "scheduler={name: asha, reduction: 2}", "train.epochs=8"]
    sweep.run("--set", "resources={processes: 2}", *(w for text in early for w in ("--set", text)), *SELDOM)
    states = [read_status(folder).state for folder in sweep.runs.glob("base/*")]
    assert states.count("stopped") >= 1
    assert set(states) == {"stopped", "finished"}
