"""Each logger against its local backend, read back by other means than it was written."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from dino_lab.cli import app as cli
from dino_lab.errors import UserError
from dino_lab.loggers import forward as forwarding
from dino_lab.loggers.forward import Forward
from dino_lab.loggers.logger import About
from dino_lab.loggers.names import LoggerName

pytestmark = pytest.mark.filterwarnings("ignore")  # what the libraries say to themselves
Rows = dict[int, dict[str, float]]


def installed(*names: str) -> pytest.MarkDecorator:
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


LOGGERS = [
    pytest.param("wandb", marks=installed("wandb")),
    pytest.param("mlflow", marks=installed("mlflow", "sqlalchemy", "alembic")),
    pytest.param("trackio", marks=installed("trackio")),
]


@pytest.fixture(autouse=True)
def _at_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests; trackio reads its folder once, when it is imported."""
    for name in (
        "WANDB_MODE",
        "WANDB_PROJECT",
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_NAME",
        "TRACKIO_SPACE_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    if not TRACKIO:
        TRACKIO.append(tmp_path_factory.mktemp("trackio"))
    monkeypatch.setenv("TRACKIO_DIR", str(TRACKIO[0]))


TRACKIO: list[Path] = []


# ---- reading back


def of_wandb(folder: Path, name: str) -> tuple[dict[str, Any], Rows, str]:
    """Of every session of a run, oldest first: its .wandb file is a LevelDB log of protobuf records."""
    from wandb.proto import wandb_internal_pb2 as records

    spec: dict[str, Any] = {}
    rows: Rows = {}
    status = ""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for content in leveldb_records(file.read_bytes()[7:]):
            record = records.Record.FromString(content)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert f"{record.run.run_group}-{record.run.run_id}" == name == record.run.display_name
                spec = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                numbers = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                rows[numbers.pop("_step")] = {k: v for k, v in numbers.items() if not k.startswith("_")}
            elif kind == "exit":
                status = "finished" if record.exit.exit_code == 0 else "not finished"
    return spec, rows, status


def leveldb_records(content: bytes) -> list[bytes]:
    found, part, at = [], b"", 0
    while at + 7 <= len(content):
        left = 32768 - (at + 7) % 32768  # of the block; the file's own header counts
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        part += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(part)
            part = b""
    return found


def of_mlflow(folder: Path, name: str) -> tuple[dict[str, Any], Rows, str]:
    with sqlite3.connect(folder.parent.parent / "mlflow.db") as base:
        ((run, status),) = base.execute("select run_uuid, status from runs where name = ?", [name])
        params = dict(base.execute("select key, value from params where run_uuid = ?", [run]).fetchall())
        metrics = base.execute("select step, key, value from metrics where run_uuid = ?", [run]).fetchall()
    base.close()
    rows: Rows = {}
    for step, key, value in metrics:
        assert key not in rows.setdefault(step, {}), "no number is there twice"
        rows[step][key] = value
    spec = {"targets": {"name": params["targets.name"]}}
    assert params["evaluators.0.k"] == "[5]"
    return spec, rows, "finished" if status == "FINISHED" else "not finished"


def of_trackio(folder: Path, name: str) -> tuple[dict[str, Any], Rows, str]:
    with sqlite3.connect(TRACKIO[0] / "dino-lab.db") as base:
        logged = base.execute("select step, metrics from metrics where run_name = ?", [name]).fetchall()
        ((config,),) = base.execute("select config from configs where run_name = ?", [name])
    base.close()
    return json.loads(config), {step: json.loads(metrics) for step, metrics in logged}, ""


READ = {"wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


# ---- runs


@pytest.mark.parametrize("name", LOGGERS)
def test_a_stopped_and_resumed_run_is_one_run(name: str, tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec()
    steps = iter(range(100))
    for stop in (lambda: next(steps) >= 4, lambda: False):
        with Forward([LoggerName(name)]) as forward:
            outcome = execute(spec, listeners=[forward], stop=stop)
            forward.status = outcome.status
        assert set(forward.places) == {name}
    logged, rows, status = READ[name](outcome.folder, f"tiny-{spec.hash}")
    assert logged["targets"]["name"] == "center"
    assert status in ("finished", "")
    wanted = [json.loads(line) for line in (outcome.folder / "rows.jsonl").read_text().splitlines()]
    assert sorted(rows) == [row["step"] for row in wanted] == [0, 2, 4, 6, 8, 10, 12]
    for row in wanted:
        step = row.pop("step")
        numbers = {key.replace(".", "/"): value for key, value in row.items()}
        assert {key: rows[step][key] for key in numbers} == pytest.approx(numbers)


@pytest.mark.parametrize("name", LOGGERS)
def test_no_logger_is_part_of_a_spec_or_a_row(
    name: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line: the same folder, the same weights, and a line that says where the rows went."""
    settings = ["--device", "cpu", "--set", "train.epochs=1"]
    for runs, log in ((tmp_path / "with", ["--log", name]), (tmp_path / "without", [])):
        assert cli.main(["run", str(tiny), "--runs", str(runs), *settings, *log]) == 0
        out = capsys.readouterr().out
        assert (f"\n{name}: " in out) is bool(log)
    one, other = (next((tmp_path / runs / "tiny").iterdir()) for runs in ("with", "without"))
    assert one.name == other.name
    weights = [load_file(folder / "backbone.safetensors") for folder in (one, other)]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert READ[name](one, f"tiny-{one.name}")[1].keys() == {0, 2, 4}


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_missing_package_is_one_line(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["run", str(tiny), "--runs", str(tmp_path / "runs"), "--log", name]) == 2
    err = capsys.readouterr().err
    assert err == f"--log {name} needs {name}, which is not installed: pip install 'dino-lab[{name}]'\n"
    assert not (tmp_path / "runs").exists()


def test_the_environment_names_loggers_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def made(names: list[LoggerName]) -> None:
        asked.append([str(name) for name in names])
        raise UserError("enough")

    monkeypatch.setattr(forwarding, "Forward", made)
    for arguments, environment in (([], "wandb mlflow"), (["--log", "trackio"], "wandb"), ([], "")):
        CliRunner().invoke(cli.app, ["run", str(tiny), *arguments], env={"DINO_LAB_LOG": environment})
    assert asked == [["wandb", "mlflow"], ["trackio"], []]


# ---- what goes wrong


class Fragile:
    """A logger that fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where, self.told = where, []

    def start(self, about: About) -> str:
        return self._tell("start", "here")

    def row(self, step: int, numbers: Mapping[str, float]) -> None:
        self._tell(f"row {step}")

    def finish(self, status: str) -> None:
        self._tell(f"finish {status}")

    def _tell(self, what: str, answer: str = "") -> str:
        self.told.append(what)
        if what == self.where:
            raise OSError("the network\nis down")
        return answer


def run_with(
    logs: dict[str, Fragile], spec: object, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(forwarding, "make_logger", lambda name: logs[name])
    with Forward([LoggerName(name) for name in logs]) as forward:
        outcome = execute(spec, listeners=[forward])
        forward.status = outcome.status
    return outcome


@pytest.mark.parametrize("where", ["row 4", "finish finished"])
def test_a_logger_that_breaks_costs_the_run_nothing(
    where: str,
    tiny_spec: Callable,
    execute: Callable,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logs = {"wandb": Fragile(where), "mlflow": Fragile("")}
    with caplog.at_level(logging.WARNING, "dino_lab"):
        assert run_with(logs, tiny_spec(), execute, monkeypatch).status == "finished"
    assert [record.getMessage() for record in caplog.records] == [
        "--log wandb: no more is logged there (the network)"
    ]
    assert logs["wandb"].told[-1] == where
    assert logs["mlflow"].told[-2:] == ["row 12", "finish finished"]


def test_a_logger_that_cannot_start_is_told_before_the_first_step(
    tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = {"wandb": Fragile(""), "mlflow": Fragile("start")}
    with pytest.raises(UserError, match=r"^--log mlflow: the network$"):
        run_with(logs, tiny_spec(), execute, monkeypatch)
    assert logs["wandb"].told == ["start", "finish failed"]


@pytest.mark.parametrize("name", LOGGERS)
def test_nothing_leaves_the_machine(name: str, tmp_path: Path) -> None:
    """In a process of Python in which every connection to an address of the internet fails, and is counted."""
    code = f"""
import socket
from pathlib import Path
asked = []
real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        asked.append(address); raise OSError("no")
    return real(self, address)
socket.socket.connect = connect
def look_up(host, *a, _real=socket.getaddrinfo, **k):
    if host not in ("127.0.0.1", "localhost", "::1", None): asked.append(host); raise OSError("no")
    return _real(host, *a, **k)
socket.getaddrinfo = look_up
from dino_lab.loggers.logger import About, make_logger
log = make_logger({name!r})
folder = Path({str(tmp_path)!r}) / "runs" / "a" / "b"; folder.mkdir(parents=True)
print(log.start(About({{"seed": 0}}, "a", "b", folder, 0)))
log.row(0, {{"loss": 1.0, "none": float("nan")}}); log.finish("finished")
assert not asked, asked
"""
    watched = {"CI", "PYTEST_CURRENT_TEST"}  # by which a library may know that it is tested, and keep still
    environment = {key: value for key, value in os.environ.items() if key not in watched}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "a library printed"
    assert done.stderr == "", done.stderr
