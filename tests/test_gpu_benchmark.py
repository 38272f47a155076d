"""`python -m benchmarks.gpu`: what becomes of parts that fail, hang or come too late, and each part as a toy."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu.comparing import Comparison, compare, largest, relative
from benchmarks.gpu.methods import Trained, differences
from benchmarks.gpu.page import page
from benchmarks.gpu.profiling import calls, counted, kernels, launches
from benchmarks.gpu.runner import Part, Result, run_parts
from benchmarks.gpu.step import sheet
from benchmarks.gpu.worker import Options, Work
from benchmarks.step import OneBatch
from benchmarks.timing import interleaved, ratios

TOY = Options("toy", "cpu", 0.0)
FAKES = """
import os, subprocess, sys, time

def good(work):
    work.row("Numbers", the_value=2.5, passed=True)
    work.asked("speed", {"median": 3.0, "low": 2.0, "high": 4.0, "n": 3}, "at least 2.5", True)

def fails(work):
    work.attempt("divide", lambda: 1 / 0, 5)
    work.attempt("add", lambda: work.row("Numbers", value=1 + 1), 5)

def ends(work):
    work.attempt("exit", lambda: os._exit(3), 5)
    work.attempt("hang", lambda: time.sleep(60), 1)
    work.attempt("add", lambda: work.row("Numbers", value=1 + 1), 5)

def hangs(work):
    work.row("Numbers", child=subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
    time.sleep(60)

def told(work):
    work.row("Numbers", seconds=work.options.seconds)

def stops(work):
    raise RuntimeError("no such file")
"""


def part(name: str, seconds: float = 20.0) -> Part:
    return Part(name, f"Part {name}", f"fakes:{name}", seconds)


@pytest.fixture(autouse=True)
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    (tmp_path / "fakes.py").write_text(FAKES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")


def test_a_failure_ends_neither_its_part_nor_the_next(tmp_path: Path) -> None:
    parts = [part("fails"), part("stops"), part("good")]
    fails, stops, good = run_parts(parts, TOY, tmp_path, 60)
    assert not fails.ok
    assert fails.error == "divide: ZeroDivisionError: division by zero"
    assert [line["cells"] for line in fails.figures] == [{"value": 2}]
    assert not stops.ok
    assert stops.error.splitlines()[-1] == "RuntimeError: no such file"
    assert good.ok
    assert good.error == ""
    assert good.figures[0] == {"table": "Numbers", "cells": {"the value": 2.5, "passed": True}}
    assert list(tmp_path.glob("*.jsonl")) == []
    assert (tmp_path / "gpu.log").read_text().count("\nZeroDivisionError: division by zero") == 1


def test_another_process_goes_on_behind_what_ended_the_one_before(tmp_path: Path) -> None:
    (result,) = run_parts([part("ends", 30)], TOY, tmp_path, 60)
    assert not result.ok
    assert "exit: " in result.error
    assert "hang: Timeout" in result.error
    assert [line["cells"] for line in result.figures] == [{"value": 2}]


def test_a_part_that_hangs_is_killed_with_its_children_and_its_figures_are_kept(tmp_path: Path) -> None:
    began = time.monotonic()
    hangs, late = run_parts([part("hangs", 1.0), part("good", 2.0)], TOY, tmp_path, 2.0)
    assert time.monotonic() - began < 5
    assert not hangs.ok
    assert hangs.error == "killed after 1 s"
    (child,) = (line["cells"]["child"] for line in hangs.figures)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert (late.ok, late.seconds, late.error) == (False, 0.0, "not run: no time was left")


def test_time_that_a_part_leaves_is_for_the_next(tmp_path: Path) -> None:
    good, told = run_parts([part("good", 9), part("told", 1)], TOY, tmp_path, 20)
    assert good.ok
    assert 20 - good.seconds - 1 < told.figures[0]["cells"]["seconds"] < 20


def test_files_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PARTS", (part("fails"), part("good"), part("hangs")))
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    arguments = ["--to", str(tmp_path / "out"), "--size", "toy", "--device", "cpu", "--parts", "good,fails"]
    assert command.main(arguments) == 1
    machine, *parts = map(json.loads, (tmp_path / "out" / "gpu.jsonl").read_text().splitlines())
    assert "toy sizes on the CPU" in machine["machine"]["card"]
    assert [(its["part"], its["ok"]) for its in parts] == [("fails", False), ("good", True)]
    assert "good: " in capsys.readouterr().out
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert "| speed | 3 (2 to 4, n = 3) | at least 2.5 |  |" in text  # toys do not tell
    assert "| Part good | " in text
    assert "| yes | 1 of 1 |" in text
    assert "divide: ZeroDivisionError" in text


def test_page_writes_numbers_to_three_digits() -> None:
    cells = [{"a": 0.000123456, "b": 12345.6}, {"a": 7, "b": None}, {"a": True, "c": "x|y"}]
    figures = [{"table": "T", "cells": each} for each in cells] + [{"table": "T", "note": "Said."}]
    text = page({"": "today", "card": "none"}, [Result("p", "P", 1.0, True, "", figures)])
    assert (
        "| a | b | c |\n| --- | --- | --- |\n| 0.000123 | 12,346 |  |\n| 7 |  |  |\n| yes |  | x/y |" in text
    )
    assert text.endswith("Said.\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "full", "--device", "cpu"], "--size full needs --device cuda"),
        (["--parts", "knn,speed"], "no part speed; there are kernels, methods"),
        ([], "torch finds no CUDA device"),
    ],
)
def test_a_wrong_request_has_one_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    try:
        code: object = command.main(["--to", str(tmp_path / "out"), *arguments])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def work_of(tmp_path: Path) -> tuple[Work, Path]:
    return Work(Options("toy", "cpu", 60.0), tmp_path / "figures"), tmp_path / "figures"


def test_a_difference_is_relative_to_the_norm_of_what_is_right() -> None:
    a, b = [torch.tensor([3.0, 0.0]), torch.tensor([1.0])], [torch.tensor([0.0, 4.0]), torch.tensor([1.0])]
    assert relative(a, b) == pytest.approx(5 / 17**0.5)
    assert largest(a[0], b[0]) == 4.0


@pytest.mark.parametrize(("difference", "passed"), [(0.1, True), (0.11, False), (float("nan"), False)])
def test_what_is_too_far_or_no_number_does_not_pass(difference: float, passed: bool, tmp_path: Path) -> None:
    work, file = work_of(tmp_path)
    compare(work, "T", [Comparison("one", 0.1, lambda device, toy: difference)], 5)
    assert work.failed is not passed
    cells = [line["cells"] for line in map(json.loads, file.read_text().splitlines()) if "cells" in line]
    assert [its["passed"] for its in cells] == [passed]


def test_difference_of_two_trainings() -> None:
    first = [torch.zeros(2)]
    base = Trained([2.0, 1.0], [4.0, 1.0], [torch.tensor([3.0, 4.0])], first)
    other = Trained([2.0, 1.5], [5.0, 9.0], [torch.tensor([3.0, 3.0])], first)
    found = {"first loss": 0.0, "first gradient": 0.25, "losses": 0.5, "weights": 1 / 5}
    assert differences(other, base) == pytest.approx(found)


@pytest.mark.parametrize(("size", "device", "met"), [("full", "cuda", True), ("toy", "cuda", None)])
def test_asked_figures_are_judged_at_full_size_alone(
    size: str, device: str, met: bool | None, tmp_path: Path
) -> None:
    Work(Options(size, device, 60.0), tmp_path / "figures").asked("speed", 3.0, "at least 2.5", True)
    assert json.loads((tmp_path / "figures").read_text())["cells"]["met"] is met


def test_rounds_end_with_their_time_but_one_is_counted() -> None:
    made: list[str] = []
    jobs = {name: partial(made.append, name) for name in ("a", "b")}
    assert {name: len(times) for name, times in interleaved(jobs, "cpu", 3).items()} == {"a": 3, "b": 3}
    assert made == ["a", "b"] * 4
    assert len(interleaved(jobs, "cpu", 3, warm=2, seconds=0)["a"]) == 1
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_data_sheets_are_found_by_the_name_of_the_card() -> None:
    assert sheet("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989
    assert sheet("NVIDIA H100 PCIe", torch.bfloat16) == 756
    assert sheet("NVIDIA H100 80GB HBM3", torch.float32, tf32=True) == 494.5
    assert sheet("NVIDIA H100 80GB HBM3", torch.float32) is None
    assert sheet("a card of another year", torch.bfloat16) is None


def test_a_profile_counts_calls_and_times_operations() -> None:
    x = torch.randn(64, 64)
    with counted("cpu") as found:
        for _ in range(3):
            x @ x
    assert calls(found)["aten::mm"] == 3
    name, milliseconds, times = kernels(found)[0]
    assert (name, times) == ("aten::mm", 3)
    assert milliseconds > 0
    with pytest.raises(AssertionError, match="saw no kernel"):
        launches(found)


def test_one_batch_is_every_batch() -> None:
    data = OneBatch(4, 16)
    batches = data.train(4, 0, 7)
    (images, labels), (again, _) = next(batches), next(batches)
    assert images.shape == (4, 3, 16, 16)
    assert torch.equal(images, again)
    assert labels.tolist() == [0, 1, 2, 3]
    assert data.to(torch.device("cpu")).train_images == data.train_images == 400


# Every part but those that start processes of their own, and those that compile. Ray is refused: the command
# needs none.
LEFT_OUT = ("processes", "together", "compiled_step", "compiled_cifar", "compiled_crops")
TOYS = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError("refused")

sys.meta_path.insert(0, Refuse())
import torch
torch.set_num_threads(1)
from importlib import import_module
from pathlib import Path
from benchmarks.gpu.__main__ import PARTS
from benchmarks.gpu.worker import Options, Work
left_out = sys.argv[2:]
for part in PARTS:
    module, function = part.target.split(":")
    measure = getattr(import_module(module), function)
    if part.name not in left_out:
        measure(Work(Options("toy", "cpu", 300.0), Path(sys.argv[1], part.name)))
"""


@pytest.mark.slow
def test_every_part_as_a_toy_on_the_cpu_without_ray(tmp_path: Path) -> None:
    words = [sys.executable, "-W", "error", "-c", TOYS, str(tmp_path), *LEFT_OUT]
    subprocess.run(words, check=True, timeout=300)
    for its in command.PARTS:
        if its.name not in LEFT_OUT:
            lines = [json.loads(line) for line in (tmp_path / its.name).read_text().splitlines()]
            assert [line for line in lines if line.get("error")] == []
            assert sum("cells" in line for line in lines) >= 4, its.name
            assert all(line["cells"].get("passed", True) for line in lines if "cells" in line)
