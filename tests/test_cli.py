from __future__ import annotations

import errno
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from dino_lab import __version__
from dino_lab.building.execution import choose_device
from dino_lab.cli import app as cli
from dino_lab.cli.formatting import duration, verdict_text
from dino_lab.cli.interrupt import Interrupt
from dino_lab.cli.live import History, LiveView, curve, resample
from dino_lab.cli.plain import PlainView
from dino_lab.cli.summary import Notes, print_summary
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.registry import Entry, registry
from dino_lab.registry.kinds import FOLDERS
from dino_lab.registry.plugin_files import load_plugins
from dino_lab.runs.files import LEARNED
from dino_lab.runs.rows import main_score
from dino_lab.training.diagnostics import Verdict
from dino_lab.training.loop import Row
from dino_lab.training.trainer import Outcome

ESCAPE = "\x1b"
IMAGES = SimpleNamespace(train_images=9, test_images=4, classes=3)
RUN = SimpleNamespace(data=IMAGES, evaluation_data=IMAGES, left_out=(), said=())
LEARNING = Verdict("learning", "learning: target entropy 2.00 of at most 3.00")
SPEC = """\
name: tiny
data: {name: shapes, size: 16, classes: 4, train_images: 64, test_images: 32}
augment: {name: multicrop, global_size: 16, local_views: 1, local_size: 8}
backbone: {name: vit, width: 32, depth: 1, heads: 2, patch: 8}
head: {name: prototypes, hidden: 32, bottleneck: 16, dim: 64}
teacher: {name: ema}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw}
train: {epochs: 2, batch_size: 16, log_every: 1}
evaluators: [{name: knn, k: [5]}]
"""


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.yaml"
    file.write_text(SPEC)
    return file


@pytest.fixture
def _own_losses() -> Iterator[None]:
    for name in registry.names("loss"):
        registry.find("loss", name)  # a module that is first imported inside would be forgotten with the rest
    with registry.scratch():
        yield


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A real `dino-lab`, killed at the end if it is still there."""
    started = subprocess.Popen(
        [sys.executable, "-m", "dino_lab", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    with started:
        try:
            yield started
        finally:
            started.kill()


# ------------------------------------------------------------------------------------------ the whole process


def test_help_and_list_import_nothing_heavy() -> None:
    code = (
        "import sys; from dino_lab.cli.app import main\n"
        "main(['--help']); early = set(sys.modules)\n"
        "main(['run', '--help']); main(['sweep', '--help']); main(['list'])\n"
        "heavy = {'torch', 'timm', 'kornia', 'torchvision', 'ray', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not {'pydantic', 'rich.console'} & early"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_run_ends_with_0_and_words_without_control_codes(
    spec_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(spec_file), "--runs", str(tmp_path / "[runs]"), "--device", "cpu"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert ESCAPE not in out
    assert "\r" not in out
    assert "step 8/8" in out
    assert re.search(r"knn\.5nn: 0\.\d{4} before training, 0\.\d{4} after", out)
    floors = re.search(r"after \((chance 0\.\d{3}, raw pixels 0\.\d{3})\)\n", out)
    assert floors is not None
    (folder,) = (tmp_path / "[runs]" / "tiny").iterdir()
    assert f"files in {folder}\n" in out  # brackets kept, line not wrapped
    lines = out[out.index("load the backbone:\n") :].splitlines()[1:4]
    scope: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines), scope)
    assert scope["model"].num_features == 32
    assert out.endswith(f"what it learned, before and after: {folder / LEARNED}\n")
    with Image.open(folder / LEARNED) as picture:
        assert picture.format == "PNG"

    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith("\nalready finished: 8 of 8 steps")
    assert cli.main(["eval", str(folder), "--device", "cpu", "--of", "teacher"]) == 0
    score = re.search(r"(0\.\d{4}) after", out)
    assert score is not None
    assert capsys.readouterr().out.startswith(f"knn.5nn  {score[1]}  {floors[1]}\n  knn/2: ")
    to = tmp_path / "b.safetensors"
    assert cli.main(["export", str(folder), "--to", str(to)]) == 0
    assert to.exists()


def test_an_interrupted_run_saves_and_ends_with_130(spec_file: Path, tmp_path: Path) -> None:
    arguments = ["--set", "train.epochs=100000", "--runs", tmp_path, "--device", "cpu"]
    with process("run", spec_file, *arguments) as running:
        assert running.stdout is not None
        while "step" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "stopping after this step" in err
    assert "interrupted" in out
    assert "--set train.epochs=100000" in out[out.index("to continue") :]
    (folder,) = (tmp_path / "tiny").iterdir()
    assert (folder / "last.pt").exists()


def test_a_closed_pipe_is_no_error() -> None:
    with process("list") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(timeout=30) == 1


# ------------------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'"),
        (["run"], "Missing argument 'SPEC' (see: dino-lab run --help)"),
        (["run", "a.yaml", "--threads", "0"], "--threads"),
        (["list", "losses"], "no kind is called 'losses'"),
        (["show", "multicorp"], "did you mean 'multicrop'?"),
        (["show", "loss", "multicrop"], "no loss is called 'multicrop'"),
        (["validate", "no[red]such.yaml"], "no[red]such.yaml"),
        (["eval", "nowhere"], "nowhere: no run, and no file or folder of weights"),
        (["export", ".", "--to", "b.bin"], "--to b.bin: should end in .safetensors"),
        (["list", "--plugin", "nowhere.py"], "--plugin nowhere.py: no such file"),
    ],
)
def test_a_wrong_request_gets_one_line_and_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a: b"), 2, "a: b"),
        (OSError(errno.ENOSPC, "No space left on device", "last.pt"), 1, "while writing last.pt"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: Permission denied"),
        (OSError(errno.EIO, "Input/output error", "runs"), 1, "runs: Input/output error"),
        (torch.OutOfMemoryError("CUDA"), 1, "train.batch_size"),
        (RuntimeError("one\ntwo"), 1, "internal error: RuntimeError: one (DINO_LAB_TRACEBACK=1 shows where)"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_exception_becomes_a_line_and_a_code(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("DINO_LAB_TRACEBACK", raising=False)
    monkeypatch.setattr(cli, "app", fail)
    assert cli.main(["list"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == (1 if words else 0)


def test_a_traceback_is_shown_to_who_asks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("x")

    monkeypatch.setenv("DINO_LAB_TRACEBACK", "1")
    monkeypatch.setattr(cli, "app", fail)
    assert cli.main(["list"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_failed_run_ends_with_1(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dino_lab.training import trainer

    outcome = Outcome("failed", tmp_path, 3, 8, LEARNING, reason="the loss is nan")
    monkeypatch.setattr(trainer, "fit", lambda *_, **__: outcome)
    assert cli.main(["run", str(spec_file)]) == 1
    assert "failed: 3 of 8 steps, 0:" in (out := capsys.readouterr().out)
    assert "the loss is nan" in out


def test_a_misfit_points_at_its_line(
    spec_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dino_lab.building import check

    def misfit(*_: object) -> None:
        raise Misfit(("train", "batch_size"), "too much")

    monkeypatch.setattr(check, "check", misfit)
    assert cli.main(["validate", str(spec_file)]) == 2
    assert re.fullmatch(
        rf"{re.escape(str(spec_file))}:10:\d+: train\.batch_size: too much\n", capsys.readouterr().err
    )


# ------------------------------------------------------------------------------------------ the other verbs


def test_version_and_bare_call() -> None:
    result = CliRunner().invoke(cli.app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"dino-lab {__version__}\n")
    assert cli.main([]) == 0


def test_validate_says_what_follows(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(spec_file), "--set", "seed=3"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{spec_file}: OK\n  tiny, hash ")
    assert "parameters" in out


def test_validate_prints_every_error(spec_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec_file.write_text(SPEC.replace("epochs: 2", "epochs: -2").replace("name: ema", "name: emma"))
    assert cli.main(["validate", str(spec_file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{spec_file}:") for line in lines)


def test_list_has_every_component_once() -> None:
    result = CliRunner().invoke(cli.app, ["list"])
    listed = [tuple(line.split()[:2]) for line in result.output.splitlines()]
    assert listed == [(kind, name) for kind in FOLDERS for name in registry.names(kind)]
    only = CliRunner().invoke(cli.app, ["list", "augment"])
    assert {line.split()[0] for line in only.output.splitlines()} == {"augment"}


PLUGIN = '''
from typing import Annotated
import torch
from pydantic import Field
from dino_lab.registry import register

@register("loss", "my_loss")
class MyLoss(torch.nn.Module):
    """Nothing [bold] at all."""
    negatives = False
    cross_entropy = False

    def __init__(self, dim: int, *, weight: Annotated[float, Field(gt=0, description="of it")] = 0.5) -> None:
        super().__init__()

    def forward(self, student, target, pairs):
        return student.sum()
'''


@pytest.mark.usefixtures("_own_losses")
def test_a_plugin_file_is_listed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUGIN)
    assert cli.main(["list", "loss", "--check", "--plugin", str(file)]) == 0
    assert re.search(rf"^loss +my_loss +{re.escape(str(file))} +ok$", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["show", "my_loss"]) == 0
    out = capsys.readouterr().out
    assert f"loss: my_loss\n{file}:7\n\nNothing [bold] at all.\n" in out
    assert re.search(r"^weight +number > 0 +0\.5 +of it$", out, re.MULTILINE)


def test_a_broken_plugin_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("x = 1\nimport nothing_of_this_name\n")
    with pytest.raises(UserError, match=r"broken\.py: line 2: ModuleNotFoundError: No module"):
        load_plugins([file])
    file.write_text("def f(:\n")
    with pytest.raises(UserError, match=r"broken\.py: line 1: SyntaxError"):
        load_plugins([file])


def test_list_check_fails_where_a_component_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = registry.find

    def refuse(kind: str, name: str) -> Entry:
        if name == "single":
            raise UserError("it is broken")
        return find(kind, name)

    monkeypatch.setattr(registry, "find", refuse)
    assert cli.main(["list", "augment", "--check"]) == 1
    out = capsys.readouterr().out
    assert "single" in out
    assert "it is broken" in out
    assert out.endswith(f"1 of {len(registry.names('augment'))} failed\n")


def test_schema_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "schema.json"
    assert cli.main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert cli.main(["schema", "--output", str(file)]) == 0
    assert json.loads(file.read_text()) == printed
    assert "backbone" in printed["properties"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str) -> None:
    result = CliRunner().invoke(cli.app, ["completion", shell])
    assert f"_DINO_LAB_COMPLETE=complete_{shell}" in result.output


def test_completion_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for key, value in {
        "_DINO_LAB_COMPLETE": "complete_bash",
        "COMP_WORDS": "dino-lab va",
        "COMP_CWORD": "1",
    }.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit):
        cli.main([])
    assert capsys.readouterr().out.split() == ["validate"]


# ------------------------------------------------------------------------------------------ options and words


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cuda:99", "cpu:0", "cuda0"])
def test_a_device_that_is_not_there_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--device {text}"):
        choose_device(text)


def test_the_device_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device(None) == torch.device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match="2 CUDA device"):
        choose_device("cuda:2")


def test_durations_and_the_score_to_draw() -> None:
    assert [duration(s) for s in (0.4, 42, 725, 12000)] == ["0:00", "0:42", "12:05", "3:20:00"]
    assert main_score({"knn.10nn": 0.1, "knn.20nn": 0.2}) == "knn.20nn"
    assert main_score({"probe.top1": 0.1}) == "probe.top1"
    assert main_score({}) is None


def test_a_curve_is_as_high_as_its_numbers() -> None:
    assert curve([0, 1, 2, 3, 4, 5, 6, 7, 8], 9, 1, 0, 8) == ["▁▁▂▃▄▅▆▇█"]
    assert curve([0, 8, 16], 3, 2, 0, 16) == ["  █", "▁██"]
    assert curve([5, 5], 2, 1, 5, 5) == ["▁▁"]
    assert curve([], 2, 2, 0, 1) == ["  ", "  "]


def test_resampling_means_or_repeats() -> None:
    assert resample([1, 3, 5, 7], 2) == [2, 6]
    assert resample([1, 2], 4) == [1, 1, 2, 2]


def test_a_history_keeps_its_mean_and_its_bounds() -> None:
    history = History(most=8)
    for i in range(1000):
        history.add(i)
    history.add(float("nan"))
    assert 4 <= len(history.values) <= 8
    assert history.values == sorted(history.values)
    assert history.values[0] == pytest.approx((len(range(128)) - 1) / 2)


# ------------------------------------------------------------------------------------------ interrupts


def test_the_first_interrupt_asks_and_the_second_ends(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupt(announce=True) as interrupt:
        assert not interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr().err.count("stopping") == 1


# ------------------------------------------------------------------------------------------ views


def fake_spec() -> Any:
    return SimpleNamespace(name="a[b]", hash="0123456789ab", train=SimpleNamespace(epochs=2))


def numbers(**more: float) -> dict[str, float]:
    return {"loss": 2.5, "lr": 1e-3, "entropy": 2.0, "entropy_max": 3.0, "images_per_second": 410.0, **more}


def test_plain_lines_come_at_intervals_and_with_news(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    view = PlainView(fake_spec(), "cpu", every=5, clock=lambda: now)
    view.started(RUN, Path("runs/[x]"), 0)  # type: ignore[arg-type]
    warming = Verdict("warming up", "warming up: until 10%")
    scores: list[dict[str, float]] = [{}] * 20
    scores[7] = {"knn.20nn": 0.25}
    for step in range(1, 20):
        now = float(step)
        view.row(Row(step, 100, step / 50, numbers() | scores[step]), LEARNING if step >= 15 else warming)
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == ["a[b] on cpu, runs/[x]", "data: 9 training and 4 test images of 3 classes"]
    assert [int(m[1]) for line in out if (m := re.match(r"step (\d+)/100", line))] == [1, 6, 7, 12, 15]
    assert out.count(LEARNING.sentence) == 1
    assert (
        out[5] == "step 7/100  epoch 0.14/2  loss 2.5  lr 0.001  entropy 2 of 3  410 images/s  "
        "1:33 left  knn.20nn 0.2500  warming up"
    )


def render(view: LiveView, console: Console) -> str:
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_live_view_fits_and_says_it_all(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), markup=False, highlight=False)
    now = 0.0
    view = LiveView(fake_spec(), "cpu", console, stopping=lambda: now > 15, clock=lambda: now)
    assert "preparing" in render(view, console)
    view.started(RUN, Path("runs/[x]"), 10)  # type: ignore[arg-type]
    view.row(Row(0, 100, 0.0, {"knn.20nn": 0.1}), LEARNING)
    for step in range(11, 21):
        view.row(Row(step, 100, step / 50, numbers(kl=0.5)), LEARNING)
    view.row(Row(20, 100, 0.4, {"knn.20nn": 0.3, "knn.10nn": 0.2}), LEARNING)
    now = 20.0
    text = render(view, console)
    assert all(len(line) <= width for line in text.splitlines())
    for words in ("a[b]", "runs/[x]", "step 20/100", "2:40", "of 3 = ln K", "● learning:", "stopping"):
        assert words in text.replace("\n", " ") or width < 60
    assert "knn.20nn 0.3 from 0.1" in text
    assert "knn.10nn" in text
    assert "█" in text


def test_80_columns_cut_no_name_and_show_the_verdict_first() -> None:
    console = Console(width=80, file=io.StringIO(), markup=False, highlight=False)
    view = LiveView(fake_spec(), "cpu", console)
    view.started(RUN, Path("x"), 0)  # type: ignore[arg-type]
    names = {f"attention_masks.head{i}_jaccard_60": i / 7 for i in range(1, 4)}
    row = numbers(loss=3.884, entropy=3.009, entropy_max=6.931) | names | {"knn.20nn": 0.657}
    floors = "0.6570, 0.2860 untrained, 0.1000 chance, 0.3380 raw pixels; target entropy 3.01"
    verdict = Verdict("learning", f"learning; 20-NN above untrained and raw pixels: {floors}", better=True)
    view.row(Row(0, 100, 0.0, {"knn.20nn": 0.286}), LEARNING)
    view.row(Row(1, 100, 0.0, row), verdict)
    text = render(view, console)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert all(f"{name} {value:.4g}" in text for name, value in names.items())
    assert "entropy 3.009 of 6.931 " in text
    assert "knn.20nn 0.657 from 0.286" in text
    words = " ".join(line.strip("│ ") for line in text.splitlines())
    assert words.index(verdict.sentence) < words.index("learning rate")


def test_a_resumed_live_view_goes_on_from_earlier_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"step": 0, "epoch": 0, "knn.20nn": 0.1, "loss": 9.5}\n')
    console = Console(width=100, file=io.StringIO())
    view = LiveView(fake_spec(), "cpu", console)
    view.started(RUN, tmp_path, 1)  # type: ignore[arg-type]
    view.row(Row(2, 100, 0.0, numbers()), LEARNING)
    assert "loss 2.5 from 9.5" in render(view, console)


def test_the_live_view_survives_numbers_that_are_none() -> None:
    console = Console(width=100, file=io.StringIO())
    view = LiveView(fake_spec(), "cpu", console)
    view.started(RUN, Path("x"), 0)  # type: ignore[arg-type]
    view.row(Row(1, 100, 0.0, numbers(loss=float("nan"))), LEARNING)
    assert "loss nan" in render(view, console)


def test_before_the_first_row_there_is_no_loss() -> None:
    console = Console(width=100, file=io.StringIO())
    view = LiveView(fake_spec(), "cpu", console)
    view.started(RUN, Path("x"), 0)  # type: ignore[arg-type]
    view.row(Row(0, 100, 0.0, {"knn.20nn": 0.1}), LEARNING)
    text = render(view, console)
    assert "knn.20nn 0.1" in text
    assert "loss" not in text
    assert "nan" not in text


def test_the_evaluation_before_training_is_not_counted_as_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    console = Console(width=100, file=io.StringIO())
    live = LiveView(fake_spec(), "cpu", console, clock=lambda: now)
    plain = PlainView(fake_spec(), "cpu", clock=lambda: now)
    for view in (live, plain):
        now = 0.0
        view.started(RUN, Path("x"), 0)  # type: ignore[arg-type]
        now = 900.0  # the evaluation
        view.row(Row(0, 100, 0.0, {"knn.20nn": 0.1}), LEARNING)
        now = 902.0
        view.row(Row(2, 100, 0.04, numbers()), LEARNING)
    assert "1:38 left" in render(live, console)
    now = 910.0
    plain.row(Row(10, 100, 0.2, numbers()), LEARNING)
    first, *_, last = capsys.readouterr().out.splitlines()[1:]
    assert "left" not in first
    assert "1:30 left" in last


def test_keys_are_not_echoed_into_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    """An echoed ^C or Enter would move the panel by a line, so that its border stood there twice."""
    keyboard, terminal = pty.openpty()
    with open(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)

        def echoes() -> bool:
            return bool(termios.tcgetattr(terminal)[3] & termios.ECHO)

        assert echoes()
        with LiveView(fake_spec(), "cpu", Console(width=100, file=io.StringIO())):
            assert not echoes()
        assert echoes()
    os.close(keyboard)


@pytest.mark.parametrize(
    ("verdict", "failed", "colour"),
    [
        (LEARNING, False, "cyan"),
        (replace(LEARNING, better=True), False, "green"),
        (Verdict("warming up", "warming up until 10 %: entropy", better=True), False, "cyan"),
        (LEARNING, True, None),
        (Verdict("learning", "learning, but no better than untrained yet: knn.20nn", True), False, "yellow"),
        (Verdict("learning", "signs of collapse (3 of 5 rows): entropy", True), False, "yellow"),
        (Verdict("warming up", "warming up until 10 %: entropy"), False, "cyan"),
        (Verdict("collapsed to uniform", "collapsed to uniform: entropy"), False, "red"),
    ],
)
def test_only_what_scores_above_untrained_is_green(
    verdict: Verdict, failed: bool, colour: str | None
) -> None:
    text = verdict_text(verdict, failed=failed)
    colours = {str(span.style).removeprefix("bold ") for span in text.spans}
    assert colours == ({colour} if colour else set())
    assert verdict.sentence in text.plain
    assert text.plain.startswith("● " if colour else "○ before it failed: ")
    if colour:
        assert text.plain[2 : max(span.end for span in text.spans)] == verdict.sentence.partition(":")[0]


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        ([0], "knn.20nn: 0.2466 before training, not evaluated since"),
        ([0, 8], "knn.20nn: 0.2466 before training, 0.2466 after"),
        ([8], "knn.20nn: 0.2466 after"),
    ],
)
def test_one_evaluation_is_not_two_scores(steps: list[int], line: str, tmp_path: Path) -> None:
    rows = [{"step": step, "epoch": step / 4, "knn.20nn": 0.2466} for step in steps]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(width=100, file=io.StringIO(), markup=False, highlight=False)
    score = {"knn.20nn": 0.2466}
    print_summary(Outcome("interrupted", tmp_path, 8, 9, LEARNING, 3.0, score, score), Notes(), 1.0, console)
    assert f"{line}\n" in console.file.getvalue()  # type: ignore[attr-defined]


def test_names_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printable("a\x1b[31m\nb\u202ec é") == r"a\x1b[31m\nb\u202ec é"
    evil, folder = "knn.\x1b[2J\n20nn", tmp_path / "a\x1b[2J\nb"
    folder.mkdir()
    plain = PlainView(fake_spec(), "cpu")
    plain.started(RUN, folder, 0)  # type: ignore[arg-type]
    plain.row(Row(1, 9, 0.1, numbers() | {evil: 0.5}), Verdict("learning", f"learning: {evil}"))
    console = Console(width=300, file=io.StringIO(), markup=False, highlight=False, force_terminal=True)
    live = LiveView(fake_spec(), "cpu", console)
    live.started(RUN, folder, 0)  # type: ignore[arg-type]
    live.row(Row(1, 9, 0.1, numbers() | {evil: 0.5}), LEARNING)
    console.print(live.render())
    print_summary(
        Outcome("failed", folder, 1, 9, LEARNING, 0.0, {}, {evil: 0.5}, evil), Notes(), 1.0, console
    )
    for text in (capsys.readouterr().out, console.file.getvalue()):  # type: ignore[attr-defined]
        assert "\x1b[2J" not in text
        assert r"knn.\x1b[2J\n20nn" in text


def test_the_summary_of_an_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dino-lab", "run", "my spec.yaml"])
    (tmp_path / "rows.jsonl").touch()
    console = Console(width=40, file=io.StringIO(), markup=False, highlight=False)
    notes = Notes()
    notes.rates = [100.0, 300.0, 200.0]
    notes.protocols = ["knn/1 k=20"]
    floors = {"knn.20nn": {"chance": 0.1, "raw pixels": 0.25}}
    scores = {"knn.20nn": 0.1}, {"knn.20nn": 0.3}
    outcome = Outcome("interrupted", tmp_path, 5, 8, LEARNING, 3.0, *scores, floors=floors)
    print_summary(outcome, notes, 61.0, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "interrupted: 5 of 8 steps, 1:01, 200 images/s\n" in text
    said = "knn.20nn: 0.1000 before training, 0.3000 after\n  chance 0.100, raw pixels 0.250\n"
    assert f"{said}  knn/1 k=20\n" in text
    assert f"files in {tmp_path}\n  rows.jsonl " in text
    assert "last.pt" not in text
    assert text.endswith("run the same command again: dino-lab run 'my spec.yaml'\n")
