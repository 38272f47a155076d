"""`dino-lab run` on several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import dino_lab
from dino_lab.cli.app import main
from dino_lab.runs.status import read_status


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--processes", "0"], "--processes 0: should be a number from 1 on, or gpu"),
        (["--processes", "two"], "--processes two: should be a number from 1 on, or gpu"),
        (["--address", "127.0.0.1:1"], "--address 127.0.0.1:1: --processes should say how many"),
        (["--processes", "2", "--set", "head.dimm=3"], "head.dimm: unknown key; did you mean 'dim'?"),
        (["--processes", "2", "--set", "train.batch_size=97"], "97 is more than the 96 training images"),
    ],
)
def test_a_wrong_request_is_one_line(
    tiny: Path, tmp_path: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(tiny), "--runs", str(tmp_path / "runs"), "--device", "cpu", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_processes_of_processes_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert main(["run", str(tiny), "--processes", "2"]) == 2
    assert "this is one of 2 processes already; leave it out" in capfd.readouterr().err


def started(tiny: Path, runs: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dino_lab", "run", str(tiny), "--runs", str(runs), "--device", "cpu"]
    command += ["--processes", "2", "--set", "evaluators=[]", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def has_rows(runs: Path) -> bool:
    return any(file.read_text().count("\n") > 2 for file in runs.rglob("rows.jsonl"))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_saves_once_and_ends_all(tiny: Path, tmp_path: Path, number: int) -> None:
    with started(tiny, tmp_path, "--set", "train.epochs=100000") as process:
        until(lambda: has_rows(tmp_path))
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.count("stopping after this step") == out.count("interrupted: ") == 1
    (folder,) = (tmp_path / "tiny").iterdir()
    assert read_status(folder).state == "interrupted"
    assert {file.name for file in folder.glob("*.pt")} == {"last.pt"}
    assert len(family) >= 2
    assert not [one for one in family if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.slow
def test_a_script_trains_on_several_processes(tiny: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "import dino_lab\n"
        "if __name__ == '__main__':\n"
        "    spec = dino_lab.load(sys.argv[1], 'evaluators=[]')\n"
        "    outcome = dino_lab.run(spec, runs=sys.argv[2], device='cpu', processes=2)\n"
        "    print(json.dumps([outcome.status, outcome.step, str(outcome.folder)]))\n"
    )
    done = subprocess.run(
        [sys.executable, script, tiny, tmp_path / "runs"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(dino_lab.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    status, step, folder = json.loads(done.stdout)
    assert (status, step) == ("finished", 12)
    assert read_status(Path(folder)).state == "finished"
    assert done.stderr == ""
