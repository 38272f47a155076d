"""What differs between two specs, and how `dino-lab diff` says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from dino_lab.cli.app import main
from dino_lab.spec.difference import difference
from dino_lab.spec.file import dump_yaml, load

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


def changes(*settings: str) -> list[str]:
    old, new = load(QUICKSTART).spec, load(QUICKSTART, settings).spec
    forward = [f"{change.key}: {change.old} -> {change.new}" for change in difference(old, new)]
    backward = [f"{change.key}: {change.new} -> {change.old}" for change in difference(new, old)]
    assert forward == backward
    return forward


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ((), []),
        (("name=other",), []),
        (("loss.temperature=0.2",), ["loss.temperature: 0.1 -> 0.2"]),
        (("loss.temperature=0.1000000001",), ["loss.temperature: 0.1 -> 0.1000000001"]),
        (("loss={name: mse}",), ["loss: cross_entropy -> mse"]),
        (("loss={name: mse, normalize: false}",), ["loss: cross_entropy -> mse {normalize: false}"]),
        (("targets={name: center}",), []),  # the defaults are those of the file
        (("predictor={name: linear, dim: 1024}",), ["predictor: null -> linear {dim: 1024}"]),
        (("teacher.momentum=0.9",), ["teacher.momentum: {start: 0.95, end: 1, shape: cosine} -> 0.9"]),
        (
            ("teacher.momentum.start=0.9", "teacher.momentum.shape=linear"),
            ["teacher.momentum.start: 0.95 -> 0.9", "teacher.momentum.shape: cosine -> linear"],
        ),
        (("optim={name: sgd}",), None),
        (("optim.clip=null",), ["optim.clip: {norm: 3, per: tensor} -> null"]),
        (("optim.clip.per=all",), ["optim.clip.per: tensor -> all"]),
        (("evaluators.0.k=[5]",), ["evaluators.0.k: [10, 20] -> [5]"]),
        (("evaluators=[]",), ["evaluators.0: knn -> -"]),
        (
            ("evaluators=[{name: knn, k: [10, 20]}, {name: knn, every: 3}]",),
            ["evaluators.1: - -> knn {every: 3}"],
        ),
        (("train.epochs=9", "seed=4"), ["seed: 0 -> 4", "train.epochs: 10 -> 9"]),
    ],
)
def test_every_difference_and_no_other(settings: tuple[str, ...], said: list[str] | None) -> None:
    found = changes(*settings)
    if said is None:
        (one,) = found
        assert one.startswith("optim: adamw {lr: {start: 0.005, ")
        assert one.endswith(" -> sgd")
    else:
        assert found == said


@pytest.fixture
def byol(tmp_path: Path) -> Path:
    file = tmp_path / "byol.yaml"
    file.write_text(f"extends: {QUICKSTART}\nloss: {{name: mse}}\ntrain: {{epochs: 3}}\n")
    return file


def test_elsewhere_than_on_a_terminal_it_is_lines(byol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for form in ([], ["--format", "plain"]):
        assert main(["diff", str(QUICKSTART), str(byol), *form]) == 0
        assert capsys.readouterr().out == "loss: cross_entropy -> mse\ntrain.epochs: 10 -> 3\n"


def test_on_a_terminal_it_is_a_table(
    byol: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino_lab.cli.console.console", lambda: Console(force_terminal=True, width=80))
    assert main(["diff", str(QUICKSTART), str(byol)]) == 0
    out = capsys.readouterr().out
    assert "quickstart" in out
    assert "byol" in out
    assert "train.epochs" in out
    assert "->" not in out


def test_as_markdown(byol: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(QUICKSTART), str(byol), "--format", "markdown"]) == 0
    assert capsys.readouterr().out == (
        "| key | quickstart | byol |\n| --- | --- | --- |\n"
        "| `loss` | `cross_entropy` | `mse` |\n| `train.epochs` | `10` | `3` |\n"
    )


def test_a_run_folder_stands_for_its_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = load(QUICKSTART).spec
    (tmp_path / "spec.yaml").write_text(dump_yaml(spec))
    assert main(["diff", str(tmp_path), str(QUICKSTART)]) == 0
    assert capsys.readouterr().out == f"no difference: quickstart {spec.hash}, quickstart {spec.hash}\n"


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("nowhere.yaml", "nowhere.yaml: no such file"),
        (str(QUICKSTART.parent), "no run lies here (there is no spec.yaml)"),
    ],
)
def test_what_is_no_spec_gets_one_line(old: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", old, str(QUICKSTART)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
