"""Two hosts, as network namespaces with a cable between them: torchrun, Ray, and a cable that is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dino_lab.runs.folder import RunFolder

pytestmark = pytest.mark.cluster
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef", "RAY_worker_niceness": "0"}
SPEED = ("images_per_second", "data_wait")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """Two namespaces, of this test alone."""

    def __init__(self, folder: Path) -> None:
        self.names = [f"dl{os.getpid()}{side}" for side in "ab"]
        self.addresses = ["10.78.0.1", "10.78.0.2"]
        self._folder, self._started = folder, list[subprocess.Popen[bytes]]()
        self.temporary = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short enough for sockets
        for name in self.names:
            ip("netns", "add", name)
        one, other = self.names
        ip("link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other)
        for name, address in zip(self.names, self.addresses, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", "cable", "up")

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        ip("-n", self.names[0], "link", "set", "cable", "down")

    def start(self, host: int, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        """A command on a host; what it prints goes to `log(host)`."""
        with self.log(host).open("wb") as log:
            command = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", *map(str, words)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._started.append(process)
        return process

    def log(self, host: int) -> Path:
        return self._folder / f"{host}.log"

    def torchrun(self, host: int, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        """One process of two on a host."""
        first, here = self.addresses[0], self.addresses[host]
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={first}:29400", "--rdzv-id=test"]
        meeting += [f"--rdzv-conf=is_host={int(host == 0)}", f"--local-addr={here}"]
        both = ["torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", *meeting]
        return self.start(host, *both, "-m", "dino_lab", "run", *words, **variables)

    def ray(self, cores: int) -> str:
        """A cluster of both hosts, with so many cores each; its address."""
        first = f"{self.addresses[0]}:6400"
        for host, where in enumerate((["--head", "--port", "6400"], ["--address", first])):
            options = ["--node-ip-address", self.addresses[host], "--num-cpus", cores, "--block"]
            options += ["--object-store-memory", 100 << 20, "--temp-dir", self.temporary]
            self.start(host, "ray.scripts.scripts", "start", *where, *options, **RAY)
            until(lambda host=host: "Ray runtime started" in self.log(host).read_text(), "Ray", 90)  # type: ignore[misc]
            self.log(host).rename(self.log(host).with_suffix(".ray"))
        return first

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, 9)
            process.wait()
        for name in self.names:
            for pid in subprocess.run(["ip", "netns", "pids", name], capture_output=True).stdout.split():
                os.kill(int(pid), 9)
            ip("netns", "del", name)
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root, and the command ip")
    try:
        made = Hosts(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
    yield made
    made.close()


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def rows(folder: Path) -> list[dict[str, float]]:
    found = RunFolder(folder).rows()
    return [{name: value for name, value in row.items() if name not in SPEED} for row in found]


def test_torchrun_on_two_hosts(
    hosts: Hosts, tiny: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    runs = tmp_path / "both"
    both = [hosts.torchrun(host, tiny, "--runs", runs, "--device", "cpu") for host in (0, 1)]
    assert [process.wait(180) for process in both] == [0, 0], hosts.log(0).read_text()
    alone = execute(tiny_spec())
    (folder,) = (runs / "tiny").iterdir()
    assert folder.name == alone.folder.name
    for a, b in zip(rows(folder), rows(alone.folder), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert "step 12/12" in hosts.log(0).read_text()
    assert "step" not in hosts.log(1).read_text()


def test_a_cut_cable_ends_both_in_words(hosts: Hosts, tiny: Path, tmp_path: Path) -> None:
    endless = ["--runs", tmp_path / "both", "--device", "cpu", "--set", "train.epochs=100000"]
    endless += ["--set", "evaluators=[]"]
    for host in (0, 1):
        hosts.torchrun(host, tiny, *endless, DINO_LAB_PATIENCE="4")
    until(
        lambda: any(len(rows(folder)) > 3 for folder in (tmp_path / "both").glob("tiny/*")),
        "the first steps",
        120,
    )
    hosts.cut()
    said = ["process 1 has not been heard of", "the first process's machine has not been heard of"]
    for host in (0, 1):
        until(lambda host=host: said[host] in hosts.log(host).read_text(), said[host], 30)  # type: ignore[misc]


def test_ray_on_two_hosts(hosts: Hosts, tiny: Path, tmp_path: Path) -> None:
    address, runs = hosts.ray(1), tmp_path / "runs"
    words = ["run", tiny, "--runs", runs, "--device", "cpu", "--address", address, "--processes", 2]
    words += ["--set", "train.epochs=20", "--set", "train.log_every=1", "--checkpoint-every", 0]
    command = hosts.start(0, "dino_lab", *words, **RAY)
    until(lambda: any(len(rows(folder)) > 6 for folder in runs.glob("tiny/*")), "the first steps", 120)
    on_second = subprocess.run(["ip", "netns", "pids", hosts.names[1]], capture_output=True).stdout.split()
    titles = {int(pid): Path(f"/proc/{int(pid)}/cmdline").read_text() for pid in on_second}
    (worker,) = [pid for pid, title in titles.items() if title.startswith("ray::RayTrainWorker")]
    os.kill(worker, 9)
    assert command.wait(180) == 0, hosts.log(0).read_text()
    out = hosts.log(0).read_text()
    assert "resumed at step" in out
    assert out.count("finished: 80 of 80 steps") == 1
    assert not (runs / "_ray").exists()


@pytest.mark.parametrize(
    ("cores", "plan"),
    [
        (2, "2 at once, 2 core(s) in 2 processes each"),
        (1, "1 at once, 2 core(s) in 2 processes on several machines each"),
    ],
)
def test_a_sweep_with_trials_of_two_processes_on_two_hosts(
    hosts: Hosts, tiny: Path, tmp_path: Path, cores: int, plan: str
) -> None:
    address, runs = hosts.ray(cores), tmp_path / "runs"
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "base: tiny.yaml\nmetric: knn.5nn\ngrid: {targets.momentum: [0, 0.9]}\nresources: {processes: 2}\n"
    )
    command = hosts.start(0, "dino_lab", "sweep", sweep, "--runs", runs, "--address", address, **RAY)
    assert command.wait(240) == 0, hosts.log(0).read_text()
    assert plan in hosts.log(0).read_text()
    states = [RunFolder(folder).status().state for folder in runs.glob("tiny/*")]
    assert states == ["finished", "finished"]
