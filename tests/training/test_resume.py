"""A run killed at any moment ends with the same weights, bit for bit, as one never killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_methods import METHODS

from dino_lab.registry import registry
from dino_lab.runs.checkpoint import load_checkpoint
from dino_lab.runs.folder import RunFolder
from dino_lab.training.build import build

pytestmark = pytest.mark.usefixtures("checked_once")


def tensors(state: object, prefix: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}.{key}").items()}


def assert_same_state(one: Path, other: Path) -> None:
    a, b = (tensors(torch.load(folder / "last.pt", weights_only=True)) for folder in (one, other))
    assert a.keys() == b.keys()
    assert len(a) > 20
    different = [key for key in a if not torch.equal(a[key], b[key])]
    assert not different


@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS.keys())
def test_stopped_and_resumed_is_never_stopped(
    settings: list[str], tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    spec = tiny_spec(*settings)
    whole = execute(spec, runs=tmp_path / "whole")
    steps = iter(range(100))
    first = execute(spec, stop=lambda: next(steps) >= 4)
    assert (first.status, first.step) == ("interrupted", 5)
    second = execute(spec)
    assert (second.status, second.step) == ("finished", 12)
    assert_same_state(whole.folder, second.folder)


def test_the_queue_is_resumed(tiny_spec: Callable, execute: Callable) -> None:
    steps = iter(range(100))
    outcome = execute(tiny_spec(*METHODS["moco v2"]), stop=lambda: next(steps) >= 4)
    saved = torch.load(outcome.folder / "last.pt", weights_only=True)["loss"]["queue"]
    assert saved.shape == (50, 16)
    cpu = torch.device("cpu")
    run = build(RunFolder(outcome.folder).spec(registry), registry, cpu)
    assert not torch.equal(run.loss.queue, saved)
    checkpoint = load_checkpoint(outcome.folder, run.spec.hash, cpu)
    assert checkpoint is not None
    run.load_state_dict(checkpoint.state)
    assert torch.equal(run.loss.queue, saved)


def test_two_runs_give_the_same_rows(tiny_spec: Callable, execute: Callable, tmp_path: Path) -> None:
    folders = [execute(tiny_spec(), runs=tmp_path / name).folder for name in "ab"]
    rows = [RunFolder(folder).rows() for folder in folders]
    for row in (*rows[0], *rows[1]):
        row.pop("images_per_second", None)
        row.pop("data_wait", None)
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [0, 2, 4, 6, 8, 10, 12]


# Imports what every run needs, and runs each command line that comes in as a copy of itself.
COPIES = """
import json, os, sys
from dino_lab.cli.app import main
out = os.dup(1)
os.dup2(2, 1)
main(["validate", sys.argv[1]])
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os._exit(main(json.loads(line)))
    os.write(out, f"{child}\\n".encode())
    os.write(out, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
"""


@pytest.fixture
def start(tiny: Path) -> Iterator[Callable[..., int]]:
    """Starts `dino-lab` in a process of its own, which is killed once `until` holds; gives its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", COPIES, tiny],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as copies:
        assert copies.stdin is not None
        assert copies.stdout is not None

        def command(*arguments: object, until: Callable[[], bool] | None = None) -> int:
            copies.stdin.write(json.dumps([str(word) for word in arguments]).encode() + b"\n")
            child = int(copies.stdout.readline())
            while until is not None and not select.select([copies.stdout], [], [], 0.002)[0]:
                if until():
                    os.kill(child, signal.SIGKILL)
                    break
            return int(copies.stdout.readline())

        yield command


@pytest.mark.slow
def test_killed_with_9_is_never_killed(start: Callable[..., int], tiny: Path, tmp_path: Path) -> None:
    often = ["--checkpoint-every", "0", "--device", "cpu", "--set", "train.epochs=10"]
    whole, killed = (["run", tiny, "--runs", tmp_path / name, *often] for name in ("whole", "killed"))
    assert start(*whole) == 0
    for rows in (2, 5, 9):

        def written(rows: int = rows) -> bool:
            found = list((tmp_path / "killed").rglob("rows.jsonl"))
            return bool(found) and len(found[0].read_text().splitlines()) > rows

        assert start(*killed, until=written) == -signal.SIGKILL
    assert start(*killed) == 0
    one, other = (next((tmp_path / name).rglob("last.pt")).parent for name in ("whole", "killed"))
    assert_same_state(one, other)
