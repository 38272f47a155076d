"""The verb eval: of a run, of its first weights, and of a model of timm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from dino_lab.cli import app as cli
from dino_lab.components.teachers.frozen import Frozen, TrainedRun
from dino_lab.errors import UserError
from dino_lab.evaluation.subjects import run_subject, single_subject
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder
from dino_lab.runs.open import open_run
from dino_lab.spec.evaluation import load_evaluation
from dino_lab.training.build import build

CPU = torch.device("cpu")
FILE = """\
data: {name: shapes, train_images: 60, test_images: 30, size: 20, seed: 3}
evaluators: [{name: knn, k: [7]}, {name: knn, k: [3], of: student}]
size: 12
"""
VIT = "timm:test_vit"
SAID = {
    "backbone": '{"name": "vit", "width": 8, "depth": 1, "heads": 1, "patch": 4}',
    "size": "12",
    "largest": "12",
    "mean": "[0.5, 0.5, 0.5]",
    "std": "[0.5, 0.5, 0.5]",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "with.yaml"
    file.write_text(FILE)
    return file


def evaluate(*arguments: object) -> int:
    return cli.main(["eval", *map(str, arguments), "--device", "cpu"])


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_a_run_is_scored_by_the_file(
    tiny_spec: Callable, execute: Callable, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = execute(tiny_spec()).folder
    before = files(folder)
    to = tmp_path / "scores.json"
    capsys.readouterr()
    assert evaluate(folder, "--with", file, "--to", to) == 0
    out = capsys.readouterr().out.splitlines()
    wrote = json.loads(to.read_text())
    assert {key: wrote[key] for key in ("target", "untrained", "step", "size")} == {
        "target": str(folder),
        "untrained": False,
        "step": 12,
        "size": 12,
    }
    first, second = wrote["results"]
    assert (first["evaluator"], first["of"], second["evaluator"], second["of"]) == (
        "knn",
        "teacher",
        "knn_2",
        "student",
    )
    scores = [
        (f"{one['evaluator']}.{name}", value)
        for one in (first, second)
        for name, value in one["scores"].items()
    ]
    assert [line.split()[:2] for line in out[:4]] == [[name, f"{value:.4f}"] for name, value in scores]
    floors = [given for one in (first, second) for given in one["floors"].values()]
    assert [line.split("  ")[-1] for line in out[:4]] == [
        f"chance {one['chance']:.3f}, raw pixels {one['raw pixels']:.3f}" for one in floors
    ]
    assert out[-1].startswith("  floors/1: chance is")
    assert out[4].startswith("  knn/2: k=7")
    assert first["protocol"] == out[4].strip()
    assert files(folder) == before  # the run's own evaluations stay what they are
    assert not list(tmp_path.glob("*.tmp"))


def test_features_are_those_of_the_checkpoint(tiny_spec: Callable, execute: Callable, file: Path) -> None:
    folder = execute(tiny_spec()).folder
    evaluation = load_evaluation(file, registry).evaluation
    subject = run_subject(folder, registry, CPU, evaluation)
    saved = torch.load(folder / "last.pt", weights_only=True)
    for of, state in (("student", saved["student"]), ("teacher", saved["teacher"])):
        state = {key.removeprefix("network."): value for key, value in state.items()}
        for key, value in subject.network(of).state_dict().items():
            assert torch.equal(value, state[key]), key
    assert (subject.size, subject.data.size, subject.data.test_images) == (12, 20, 30)


def test_without_a_file_a_run_is_scored_as_it_was(tiny_spec: Callable, execute: Callable) -> None:
    outcome = execute(tiny_spec())
    (scored,) = run_subject(outcome.folder, registry, CPU).score()
    assert scored.named_scores == outcome.scores_after


def test_untrained_is_the_network_before_the_first_step(tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec()
    folder = execute(spec).folder
    found = run_subject(folder, registry, CPU, untrained=True).network("student").state_dict()
    first = build(spec, registry, CPU).student.state_dict()
    assert all(torch.equal(found[key], value) for key, value in first.items())
    (folder / "last.pt").unlink()
    assert evaluate(folder, "--untrained") == 0
    assert evaluate(folder) == 2


def test_a_model_of_timm_sees_images_as_its_weights_want_them(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("size: 12", "size: 160"))
    assert evaluate(VIT, "--with", file, "--untrained") == 0
    assert capsys.readouterr().out.startswith("knn.7nn")
    evaluation = load_evaluation(file, registry).evaluation
    subject = single_subject("timm:test_vit", registry, CPU, evaluation, untrained=True)
    network = subject.network("teacher")
    config = timm.get_pretrained_cfg("test_vit")
    assert network.mean.flatten().tolist() == pytest.approx(list(config.mean))
    assert network.std.flatten().tolist() == pytest.approx(list(config.std))
    assert list(config.mean) != pytest.approx(list(subject.data.mean)) or config.std != subject.data.std
    without = evaluation.model_copy(update={"size": None})
    assert (
        single_subject("timm:test_vit", registry, CPU, without, untrained=True).size == config.input_size[1]
    )
    (one, *_) = subject.score()
    assert one.of == "network"
    assert "of the network in evaluation mode" in one.protocol


@pytest.mark.parametrize("of", ["teacher", "student"])
@pytest.mark.parametrize(
    "backbone", [[], ["backbone={name: timm, model: resnet10t, stem: standard}"]], ids=["vit", "resnet"]
)
def test_an_exported_backbone_gets_the_scores_of_its_run(
    backbone: list[str], of: str, tiny_spec: Callable, execute: Callable, file: Path, tmp_path: Path
) -> None:
    folder = execute(tiny_spec(*backbone, "train.epochs=1", "evaluators=[]")).folder
    exported = tmp_path / "b.safetensors"
    assert cli.main(["export", str(folder), "--to", str(exported), "--of", of]) == 0
    evaluation = load_evaluation(file, registry).evaluation
    one, other = (
        [found.scores for found in subject.score(side)]
        for subject, side in (
            (run_subject(folder, registry, CPU, evaluation), of),
            (single_subject(str(exported), registry, CPU, evaluation), None),
        )
    )
    assert one == other
    first = single_subject(str(exported), registry, CPU, evaluation, untrained=True)
    assert [found.scores for found in first.score()] != other


def test_a_checkpoint_is_its_run(
    tiny_spec: Callable, execute: Callable, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = execute(tiny_spec("train.epochs=1")).folder
    capsys.readouterr()
    said = []
    for target in (folder, folder / "last.pt"):
        assert evaluate(target, "--with", file) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert evaluate(folder / "backbone.safetensors", "--with", file) == 0


def test_the_best_checkpoint_is_that_of_the_highest_score(
    tiny_spec: Callable, execute: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also after a stop; it is a target of eval and report, the start of a run, and a frozen teacher."""
    spec = tiny_spec("train.keep_best=true", "train.epochs=4")
    assert spec.hash == tiny_spec("train.epochs=4").hash
    steps = iter(range(100))
    execute(spec, stop=lambda: next(steps) >= 9)
    folder = execute(spec).folder
    scores = {row["step"]: row["knn.5nn"] for row in RunFolder(folder).rows() if "knn.5nn" in row}
    highest = max(value for step, value in scores.items() if step)
    step = min(step for step, value in scores.items() if step and value == highest)
    best = folder / "best.pt"
    saved = torch.load(best, weights_only=True)
    assert saved["step"] == step
    capsys.readouterr()
    assert evaluate(best) == 0
    assert f"{highest:.4f}" in capsys.readouterr().out
    assert cli.main(["report", str(best)]) == 0
    assert f"teacher of best.pt, after {step} steps" in (folder / "report.html").read_text()
    begun = execute(tiny_spec(f"init={{from: {best}, what: all, head: kept}}", "train.epochs=1", "name=two"))
    assert begun.scores_before["knn.5nn"] == highest
    teacher = Frozen(build(spec, registry, CPU).student, run=TrainedRun(path=best))
    token = teacher.source.state_dict()["backbone.model.cls_token"]
    assert torch.equal(token, saved["teacher"]["network.backbone.model.cls_token"])
    best.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"best\.pt: not a whole checkpoint"):
        open_run(best, registry)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not weights", "b.safetensors: cannot be read as weights ("),
        (
            save({"a": torch.zeros(1)}),
            "b.safetensors: holds no vision transformer or ResNet by names that are known (a, ...)",
        ),
        (save({"a": torch.zeros(1)}, SAID), "b.safetensors: its weights are not those of the backbone that"),
    ],
)
def test_a_file_that_is_no_backbone_is_one_line(
    content: bytes, message: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "b.safetensors"
    weights.write_bytes(content)
    assert evaluate(weights, "--with", file) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_weights_that_cannot_be_had_are_one_line(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("cannot reach the hub\nand much more")

    monkeypatch.setattr(timm, "create_model", no_network)
    assert evaluate(VIT, "--with", file) == 2
    assert capsys.readouterr().err.removeprefix("error: ").strip() == (
        "timm:test_vit: the weights of test_vit could not be had (cannot reach the hub); "
        "--untrained scores it with its first weights"
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "evaluators: [{name: knm}]",
            ":1:15: evaluators.0.name: no evaluator is called 'knm'; did you mean 'knn'?",
        ),
        (
            "evaluators: [{name: knn, temperature: 0}]",
            ":1:26: evaluators.0.temperature: must be greater than 0, got 0",
        ),
        ("evaluators: []", ":1:1: evaluators: must name at least one"),
        ("size: 8\ndata: {name: shapes}", "evaluators: required, but not given"),
        ("evaluators: [{name: knn}]\nsizes: 8", ":2:1: sizes: unknown key; did you mean 'size'?"),
        ("evaluators: [{name: knn}]\nsize: 0", ":2:1: size: must be greater than 0, got 0"),
        ("evaluators: [{name: knn}]", ":1:1: data: required: timm:test_vit has no data of its own"),
        (
            "evaluators: [{name: picky}]\ndata: {name: image_folder, path: nowhere, size: 8}",
            ":1:15: evaluators.0.name: 'picky' asks for annotated, which data 'image_folder' does not give",
        ),
        (
            "evaluators: [{name: knn}]\ndata: {name: image_folder, path: nowhere, size: 8}",
            "data.path: ",
        ),
    ],
)
def test_a_wrong_file_gets_one_line_at_its_place(
    text: str, line: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    with registry.scratch():
        registry.register("evaluator", "picky")(Picky)
        assert evaluate(VIT, "--with", file, "--untrained") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert str(file) in err
    assert line in err
    assert err.count("\n") == 1


class Picky:
    """Asks for annotated images."""

    every, of, protocol = 1, "teacher", "picky/1"
    needs = ("backbone.tokens", "data.annotated")

    def __init__(self) -> None: ...
    def forward(self, encode: object, data: object) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere"],
            "nowhere: no run, and no file or folder of weights; a model of timm is written as timm:MODEL, ",
        ),
        (["timm:resnet18"], "timm:resnet18: --with FILE says on which data"),
        (["timm:resnet19", "--with", "FILE"], "timm:resnet19: timm has no model 'resnet19'; did you mean"),
        (
            ["timm:test_vit", "--with", "FILE", "--of", "student"],
            "--of student: timm:test_vit is one network",
        ),
        (["timm:test_vit", "--with", "none.yaml"], "none.yaml: no such file"),
        (
            ["timm:test_vit", "--with", "FILE", "--to", "a.txt"],
            "--to a.txt: should be a file that ends in .json",
        ),
        (["timm:test_vit", "--with", "FILE", "--to", "no/a.json"], "--to no/a.json: should be"),
    ],
)
def test_a_wrong_request_gets_one_line(
    arguments: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*(str(file) if part == "FILE" else part for part in arguments)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
