"""The verbs around a sweep, every trial in this process."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from dino_lab.cli import app as cli
from dino_lab.cli import sweep as verb
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.status import read_status
from dino_lab.sweeps.plan.plan import SWEEPS
from dino_lab.sweeps.ray.capacity import Machine

TEXT = "base: tiny.yaml\nmetric: knn.5nn\ngrid: {targets.momentum: [0, 0.9]}\nset: {train.epochs: 1}\n"


class Sweep:
    """A sweep file and the folder of its runs."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file, self.runs = folder / "s.yaml", folder / "runs"
        self.file.write_text(text)

    def __call__(self, *arguments: str) -> int:
        return cli.main(
            ["sweep", str(self.file), "--runs", str(self.runs), "--executor", "inline", *arguments]
        )

    @property
    def folder(self) -> Path:
        (folder,) = (self.runs / SWEEPS / "s").iterdir()
        return folder

    @property
    def table(self) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / "table.csv").read_text().splitlines()))


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path) -> Sweep:
    return Sweep(tmp_path, TEXT)


def test_a_sweep_ends_with_a_table_and_is_not_run_twice(
    sweep: Sweep, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A run that exists already is a trial that is done.
    of_run = ["--set", "targets.momentum=0", "--set", "train.epochs=1", "--runs", str(sweep.runs)]
    assert cli.main(["run", str(tiny), *of_run, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert sweep("--set", "seeds=2") == 0
    out = capsys.readouterr().out
    assert "4 trials, 1 of them done before; 1 at once, 1 core(s) each" in out
    assert "momentum=0 seed 0: started" not in out
    assert "momentum=0 seed 1: started" in out
    assert "momentum=0.9 seed 1: finished, knn.5nn" in out
    low, high = sweep.table
    assert (low["n"], high["n"], high["reading"]) == ("2", "2", "baseline")
    rows = [RunFolder(path).rows() for path in (sweep.runs / "tiny").iterdir()]
    scores = {row["knn.5nn"] for run in rows for row in run[-1:]}
    assert float(high["mean"]) * 2 == pytest.approx(sum(sorted(scores)), abs=2)
    assert (sweep.folder / "curves.svg").exists()

    from dino_lab.sweeps import session

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(session, "run_trials", fail)
    assert sweep("--set", "seeds=2") == 0
    again = capsys.readouterr().out
    assert "4 trials, 4 of them done before" in again
    assert again[again.index("\n\n") :].split("everything")[0].split("\n\n")[1] in out

    assert cli.main(["compare", str(sweep.folder)]) == 0
    assert "momentum=0.9" in capsys.readouterr().out
    to = sweep.file.with_name("best.yaml")
    assert cli.main(["best", str(sweep.folder), "--copy-to", str(to)]) == 0
    assert cli.main(["validate", str(to)]) == 0
    assert cli.main(["best", str(sweep.folder), "--copy-to", str(to)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_runs_are_compared_by_spec(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--set", "seeds=2") == 0
    capsys.readouterr()
    runs = sorted((sweep.runs / "tiny").iterdir())
    assert cli.main(["compare", *map(str, runs)]) == 0
    out = capsys.readouterr().out
    untrained, pixels, chance, _, first, second = out.splitlines()[:6]
    assert untrained.startswith("no arm is seen to be better than untrained (knn.5nn 0.")
    assert pixels == "no arm is seen to be better than raw pixels (knn.5nn 0.1042)"
    assert chance == "no arm is seen to be better than chance (knn.5nn 0.1042)"
    assert re.match(r"tiny +2 .* baseline ", first)
    assert re.match(r"tiny targets\.momentum=0(\.9)? +2 .* no difference seen ", second)
    assert "score: knn.5nn" in out


def test_a_dry_run_leaves_nothing(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep("--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 trials; 1 at once" in out
    assert "a trial and 0:" in out
    assert not sweep.runs.exists()


def test_what_cannot_be_is_one_line(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dino_lab.sweeps.session.this_machine", lambda: Machine(2, 0))
    for arguments, words in (
        (["--set", "metric=knn.top1"], "(there are: knn.5nn, knn.5nn_top5)"),
        (
            ["--set", "resources.gpu=1"],
            "resources.gpu: 1 of a GPU for one trial, and this machine has none that can be used",
        ),
        (["--set", "resources.processes=2"], "--executor inline trains in one process; leave it out"),
        (["--set", "resources.processes=2", "--set", "stack=2"], "stack trains in one process"),
        (["--set", "train.batch_size=2000"], "2000 is more than the 96 training images there are"),
    ):
        assert sweep(*arguments) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
    assert not sweep.runs.exists()


@pytest.mark.parametrize("address", ["here", "127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_one_line(
    sweep: Sweep, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.environ", dict(os.environ))
    assert sweep("--executor", "ray", "--address", address) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"--address {address}: ")
    assert err.count("\n") == 1
    assert not sweep.runs.exists()


def test_a_failing_trial_is_a_line_and_the_others_go_on(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "base: tiny.yaml\nmetric: knn.5nn\nset: {train.epochs: 1}\nvariants: {fine: {}, wild: {optim.lr: 1.0e+30}}\n"
    sweep = Sweep(tmp_path, text)
    assert sweep() == 1
    fine, wild = sweep.table
    assert (fine["ended"], fine["n"]) == ("finished", "1")
    assert wild["ended"].startswith("1 failed: ")
    assert wild["n"] == "0"
    assert "1 of 2 trials" in capsys.readouterr().out


def test_a_collapse_is_a_result(tiny: Path, tmp_path: Path) -> None:
    text = (
        "base: tiny.yaml\nmetric: knn.5nn\nset: {train.on_collapse: stop, train.log_every: 1, train.epochs: 9}\n"
        "variants: {a: {targets: {name: softmax, temperature: 9.0}}}\nbaseline: a\n"
    )
    sweep = Sweep(tmp_path, text)
    assert sweep() == 0
    (line,) = sweep.table
    assert line["ended"] == "1 collapsed to uniform"
    assert line["n"] == "1"
    (folder,) = (sweep.runs / "tiny").iterdir()
    ending = read_status(folder)
    assert ending.state == "collapsed"
    assert ending.step < ending.total


def test_an_interrupt_saves_and_the_same_command_goes_on(
    sweep: Sweep,
    interrupted_at: Callable[[int], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with interrupted_at(2):
        assert sweep() == 130
    out = capsys.readouterr().out
    assert "momentum=0 seed 0: interrupted" in out
    assert "to continue, run the same command again" in out
    assert [line["n"] for line in sweep.table] == ["0", "0"]
    assert sweep() == 0
    assert "momentum=0 seed 0: started" in (out := capsys.readouterr().out)
    assert "resumed at step 2" in out
    assert [line["n"] for line in sweep.table] == ["1", "1"]
    assert verb.Executor.ray == "ray"
