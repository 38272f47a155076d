"""Runs that begin with weights that are there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_transformer import below, dino_head, dino_names, numbers, others

from dino_lab.building.check import check
from dino_lab.cli.app import main
from dino_lab.errors import Misfit, SpecError, UserError
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.runs.open import open_run
from dino_lab.spec.identity import identity_of
from dino_lab.training.build import build

CPU = torch.device("cpu")
SHORT = ("train.epochs=1",)


@pytest.fixture(scope="module")
def trained() -> list[Path]:
    return []


@pytest.fixture
def source(
    trained: list[Path],
    tiny_spec: Callable,
    execute: Callable,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> Path:
    """The folder of a finished run with scores of the teacher and the student; it is trained once."""
    if not trained:
        spec = tiny_spec("evaluators=[{name: knn, k: [5]}, {name: knn, k: [5], of: student}]")
        trained.append(execute(spec, runs=tmp_path_factory.mktemp("runs")).folder)
    return shutil.copytree(trained[0], tmp_path / "source")


def state(run: Any, part: str) -> dict[str, torch.Tensor]:
    network = run.student if part == "student" else run.teacher.network
    return {name: value for name, value in network.state_dict().items() if name not in ("mean", "std")}


def recorded(folder: Path, part: str) -> dict[str, torch.Tensor]:
    saved = torch.load(folder / "last.pt", weights_only=True)[part]
    return {name.removeprefix("network."): value for name, value in saved.items()}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], begin: str = "") -> bool:
    names = [name for name in found if name.startswith(begin)]
    assert names
    return all(torch.equal(found[name], wanted[name]) for name in names)


def test_epoch_0_has_the_score_of_the_run_that_it_begins_with(
    source: Path, tiny_spec: Callable, execute: Callable
) -> None:
    rows = open_run(source, registry).folder.rows()
    spec = tiny_spec(f"init.from={source}", "seed=5", *SHORT)
    folder = execute(spec).folder
    first = open_run(folder, registry).folder.rows()[0]
    assert first["step"] == 0
    assert first["knn.5nn"] == rows[-1]["knn.5nn"] != rows[0]["knn.5nn"]
    students = tiny_spec(f"init={{from: {source}, what: student}}", "seed=5", *SHORT)
    first = open_run(execute(students).folder, registry).folder.rows()[0]
    assert first["knn.5nn"] == rows[-1]["knn_2.5nn"] != rows[-1]["knn.5nn"]


@pytest.mark.parametrize(
    ("init", "kept"),
    [
        ("", {"student": ("backbone.", "teacher"), "teacher": ("backbone.", "teacher")}),
        (", what: student", {"student": ("backbone.", "student"), "teacher": ("backbone.", "student")}),
        (", what: student, head: kept", {"student": ("", "student"), "teacher": ("", "student")}),
        (", what: all", {"student": ("backbone.", "student"), "teacher": ("backbone.", "teacher")}),
        (", what: all, head: kept", {"student": ("", "student"), "teacher": ("", "teacher")}),
    ],
)
def test_what_is_taken(
    init: str, kept: dict[str, tuple[str, str]], source: Path, tiny_spec: Callable
) -> None:
    run = build(tiny_spec(f"init={{from: {source}{init}}}", "seed=5"), registry, CPU)
    fresh = build(tiny_spec("seed=5"), registry, CPU)
    for part, (begin, of) in kept.items():
        found, wanted = state(run, part), recorded(source, of)
        assert same(found, wanted, begin)
        other = "student" if of == "teacher" else "teacher"
        assert not same(found, recorded(source, other), begin)
        if begin:  # the head is what it would have been
            assert same(found, state(fresh, part), "head.")
    saved = torch.load(source / "last.pt", weights_only=True)["targets"]
    assert torch.equal(run.targets.state_dict()["mean"], saved["mean"]) == (init == ", what: all, head: kept")


def test_the_content_of_the_weights_is_part_of_the_identity_and_their_place_is_not(
    source: Path, tiny_spec: Callable, tmp_path: Path
) -> None:
    spec = tiny_spec(f"init.from={source}")
    copy = tiny_spec(f"init.from={shutil.copytree(source, tmp_path / 'copy')}", "init.below_start=stop")
    assert spec.hash == copy.hash != tiny_spec().hash
    hashes = {
        tiny_spec(f"init={{from: {source}, {key}}}").hash
        for key in ("what: all", "freeze: 0.1", "what: student")
    }
    assert len({spec.hash, *hashes}) == 4
    assert identity_of(spec).same_as(identity_of(copy).settings, {})
    torch.save({"student": {}, "format": 1}, tmp_path / "copy" / "last.pt")
    assert tiny_spec(f"init.from={tmp_path / 'copy'}").hash != spec.hash
    assert not identity_of(spec).same_as(identity_of(tiny_spec()).settings, {})
    assert not identity_of(tiny_spec()).same_as(identity_of(spec).settings, {})


def test_old_runs_keep_their_identity(tiny_spec: Callable) -> None:
    now = identity_of(tiny_spec())
    new = ("init", "optim.layer_decay", "optim.patch_embed_lr", "optim.freeze")
    before = {key: value for key, value in now.settings.items() if key not in new}
    assert len(before) == len(now.settings) - len(new)
    assert not now.chosen & set(new)
    assert now.same_as(before, {})


def test_a_run_goes_on_without_the_file(
    source: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    whole = execute(tiny_spec(f"init.from={source}"), runs=tmp_path / "whole")
    steps = iter(range(100))
    spec = tiny_spec(f"init.from={source}")
    first = execute(spec, stop=lambda: next(steps) >= 5)
    assert (first.status, first.step) == ("interrupted", 6)
    source.rename(tmp_path / "elsewhere")
    gone = tiny_spec(f"init.from={source}")
    assert folder_of(tmp_path / "runs", gone).path == first.folder
    again = execute(gone)
    assert (again.status, again.folder) == ("finished", first.folder)
    said = [RunFolder(outcome.folder).environment()["init"][1:] for outcome in (whole, again)]
    assert said[0] == said[1]  # all but the place
    assert same(recorded(again.folder, "student"), recorded(whole.folder, "student"))
    assert execute(gone).status == "already finished"
    with pytest.raises(UserError, match=r"init\.from: .*there is no such file or folder"):
        execute(tiny_spec(f"init.from={source}", "seed=1"))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_frozen_teacher_of_first_weights_is_in_the_checkpoint(
    mode: str, source: Path, tiny_spec: Callable, execute: Callable, tmp_path: Path
) -> None:
    spec = tiny_spec(f"init.from={source}", f"teacher={{name: frozen, mode: {mode}}}")
    whole = execute(spec, runs=tmp_path / "whole")
    steps = iter(range(100))
    assert execute(spec, stop=lambda: next(steps) >= 5).status == "interrupted"
    shutil.rmtree(source)
    again = execute(spec)
    assert again.status == "finished"
    assert same(recorded(again.folder, "student"), recorded(whole.folder, "student"))


def test_first_weights_can_be_opened_again(source: Path, tiny_spec: Callable, execute: Callable) -> None:
    folder = execute(tiny_spec(f"init.from={source}", *SHORT)).folder
    opened = open_run(folder, registry, untrained=True).backbone("teacher")
    assert same(
        {k: v for k, v in opened.state_dict().items() if k.startswith("backbone.")},
        recorded(source, "teacher"),
    )


def test_official_weights_in_a_spec(
    tiny_spec: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = numbers(width=64, depth=2, heads=1, patch=4, grid=8)
    saved = {
        "teacher": below("backbone.", dino_names(n)) | dino_head(64),
        "student": below("module.backbone.", dino_names(others(n))),
    }
    torch.save(saved, tmp_path / "dino.pth")
    backbone = "backbone={name: vit, width: 64, depth: 2, heads: 1, patch: 4}"
    spec = tiny_spec(f"init.from={tmp_path / 'dino.pth'}", backbone)
    lines = check(spec, registry)
    assert "position embeddings of 8 x 8 patches are interpolated to 4 x 4" in lines
    assert any(line.startswith("left out of the file: ") for line in lines)
    run = build(spec, registry, CPU)
    assert torch.equal(run.student.backbone.model.cls_token[0, 0], n.cls)
    # The mean of a smooth embedding survives interpolation; its first weights would have a mean near 0.
    assert run.student.backbone.model.pos_embed.shape == (1, 17, 64)
    students = build(
        tiny_spec(f"init={{from: {tmp_path / 'dino.pth'}, what: student}}", backbone), registry, CPU
    )
    assert torch.equal(students.student.backbone.model.cls_token[0, 0], n.cls + 1)


@pytest.mark.parametrize(
    ("settings", "loc", "message"),
    [
        (("init.from=nowhere.pth",), ("init", "from"), "nowhere.pth: there is no such file or folder"),
        (("init.from=SOURCE", "backbone.width=48"), ("init", "from"), "in the backbone"),
        (("init.from=SOURCE", "backbone.depth=1"), ("init", "from"), "which the backbone lacks"),
        (
            ("init.from=SOURCE", "backbone.depth=3"),
            ("init", "from"),
            "lacks 12 tensors (blocks.2.norm1.weight",
        ),
        (
            ("init={from: SOURCE, what: student, head: kept}", "head.dim=16"),
            ("init", "head"),
            "kept: the head here is another",
        ),
        (
            ("init={from: SOURCE, below_start: stop}", "evaluators=[]"),
            ("init", "below_start"),
            "needs an evaluator",
        ),
        (("init={from: BACKBONE, what: all}",), ("init", "what"), "has one network, not student and teacher"),
        (("init.from=timm:resnet19",), ("init", "from"), "timm has no pretrained weights for 'resnet19'"),
    ],
)
def test_weights_that_do_not_fit_are_told_before_anything_starts(
    settings: tuple[str, ...], loc: tuple[str, ...], message: str, source: Path, tiny_spec: Callable
) -> None:
    given = [
        one.replace("SOURCE", str(source)).replace("BACKBONE", str(source / "backbone.safetensors"))
        for one in settings
    ]
    with pytest.raises(Misfit) as caught:
        check(tiny_spec(*given), registry)
    assert caught.value.loc == loc
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("{from: a, head: kept}", "head: kept goes with what: student or what: all"),
        ("{what: all}", "init.from: required"),
        ("{from: a, freeze: 2}", "init.freeze: must be at most 1"),
        ("{from: a, form: b}", "init.form: unknown key; did you mean 'from'?"),
        ("a.pth", "init: "),
    ],
)
def test_a_wrong_init_is_one_line(init: str, message: str, tiny_spec: Callable) -> None:
    with pytest.raises(SpecError) as caught:
        tiny_spec(f"init={init}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_validate_says_what_is_taken(source: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny), "--set", f"init.from={source}"]) == 0
    assert f"first weights: backbone of {source}" in capsys.readouterr().out


def test_the_backbone_is_frozen_at_first(source: Path, tiny_spec: Callable, execute: Callable) -> None:
    spec = tiny_spec(f"init={{from: {source}, freeze: 0.5}}", "optim.freeze_last_layer=0")
    steps = iter(range(100))
    half = recorded(execute(spec, stop=lambda: next(steps) >= 5).folder, "student")  # 6 of 12 steps
    assert same(
        {name: half[name] for name in half if name.startswith("backbone.")}, recorded(source, "teacher")
    )
    first = state(build(spec, registry, CPU), "student")
    assert not same(first, half, "head.")
    whole = recorded(execute(spec).folder, "student")
    assert not same(first, whole, "backbone.")


FALLS = ("optim.lr={start: 3.0, end: 3.0, shape: constant}", "optim.clip=null", "train.epochs=4")


def test_a_run_that_falls_below_its_start_is_told_so(
    source: Path, tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_lab.training.diagnostics import Reader

    row = {"loss": 1.0, "feature_spread": 0.9, "effective_rank": 4.0}
    for trained, words in (
        (True, "below its first weights: "),
        (False, "learning, but no better than untrained yet: "),
    ):
        reader = Reader(0.1, begins_trained=trained)
        reader.read({"knn.5nn": 0.5}, 0.0)
        assert reader.read(row | {"knn.5nn": 0.4}, 0.05).below_start is False  # while it warms up
        verdict = reader.read(row | {"knn.5nn": 0.4}, 0.5)
        assert verdict.sentence.startswith(words)
        assert (verdict.below_start, verdict.doubtful) == (trained, True)
        assert "0.4000" in verdict.sentence
        assert reader.read(row | {"knn.5nn": 0.5}, 0.6).below_start is False
        assert reader.read(row | {"knn.5nn": 0.6}, 0.7).better


def test_a_run_below_its_start_is_stopped_and_stays_so(
    source: Path, tiny_spec: Callable, execute: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_lab.components.evaluators.knn import Knn

    scores = iter([0.9, 0.95, 0.3, 0.2, 0.1, 0.1])
    monkeypatch.setattr(Knn, "forward", lambda *_: {"5nn": next(scores)})
    monkeypatch.setattr(Knn, "floors", lambda *_: {})
    spec = tiny_spec(f"init={{from: {source}, below_start: stop}}", "train.epochs=5")
    outcome = execute(spec)
    assert (outcome.status, outcome.step) == ("stopped", 8)  # at the end of the second epoch
    assert outcome.reason == "its score is below that of its first weights"
    assert outcome.verdict.sentence.startswith(
        "below its first weights: knn.5nn 0.3000, 0.9000 first weights"
    )
    again = execute(spec)
    assert (again.status, again.step, again.reason) == ("stopped", 8, outcome.reason)
    status = json.loads((outcome.folder / "status.json").read_text())
    assert (status["state"], status["reason"]) == ("stopped", outcome.reason)
    warned = execute(tiny_spec(f"init={{from: {source}, below_start: warn}}", "train.epochs=5"))
    assert (warned.folder, warned.status) == (outcome.folder, "finished")
