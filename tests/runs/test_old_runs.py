"""Run folders of version 0.1.0, made by it and kept in version_0_1_0/: what they were still works."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dino_lab.cli import app as cli
from dino_lab.registry import registry
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.runs.open import open_run
from dino_lab.runs.status import read_status
from dino_lab.spec.file import dump_yaml, load

CPU = torch.device("cpu")
HASH = "5f4bd917f063"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy: `finished`, `interrupted` and `sweep` hold run folders, legacy.yaml is their spec."""
    return Path(shutil.copytree(Path(__file__).parent / "version_0_1_0", tmp_path / "old"))


@pytest.mark.parametrize("runs", ["finished", "interrupted"])
def test_it_is_found_by_its_spec(old: Path, runs: str) -> None:
    assert folder_of(old / runs, load(old / "legacy.yaml").spec).path == old / runs / "legacy" / HASH


def test_a_new_key_with_a_default_orphans_nothing(old: Path) -> None:
    """As if the old version had not had a key of today: its file lacks the line."""
    file = old / "finished" / "legacy" / HASH / "spec.yaml"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if "init_std" not in line]
    assert len(kept) == len(lines) - 1
    file.write_text("".join(kept))
    assert folder_of(old / "finished", load(old / "legacy.yaml").spec).path.name == HASH
    spec = load(old / "legacy.yaml", ["backbone.init_std=0.5"]).spec
    assert folder_of(old / "finished", spec).path.name != HASH


def test_a_default_that_has_changed_is_not_taken_for_the_one_of_then(old: Path) -> None:
    file = old / "finished" / "legacy" / HASH / "spec.yaml"
    text = file.read_text()
    assert "batch_norm: false\n" in text
    file.write_text(text.replace("batch_norm: false\n", "batch_norm: true\n"))
    assert folder_of(old / "finished", load(old / "legacy.yaml").spec).path.name != HASH
    asked = load(old / "legacy.yaml", ["head.batch_norm=true"]).spec
    assert folder_of(old / "finished", asked).path.name == HASH


def test_a_component_that_computes_something_else_now_is_another_run(old: Path) -> None:
    """LARS is Algorithm 1 of its paper since 0.2.0; VICReg's weights belonged to the formula as printed."""
    file = old / "finished" / "legacy" / HASH / "spec.yaml"
    text = file.read_text()

    def same(*settings: str, without: str) -> bool:
        spec = load(old / "legacy.yaml", settings).spec
        lines = dump_yaml(spec).splitlines(keepends=True)
        file.write_text("".join(line for line in lines if without not in line))
        return folder_of(old / "finished", spec).path.name == HASH

    assert same(without="nothing")
    assert not same("optim={name: lars}", without="nothing")
    vicreg = ("head={name: mlp, hidden: 8, dim: 16}", "targets={name: identity}")
    assert same(*vicreg, "loss={name: vicreg, scaling: paper}", without="  scaling:")
    assert not same(*vicreg, "loss={name: vicreg}", without="  scaling:")
    resnet = "backbone={name: resnet, width: 8, zero_init_last: true}"  # as it was before that was a choice
    assert same(resnet, without="  zero_init_last:")
    assert not same("backbone={name: resnet, width: 8}", without="  zero_init_last:")
    file.write_text(text)


def test_shapes_of_then_are_grey_shapes(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded `shapes` without `layout` is what is now `grey_shapes`; images of today are another run."""
    folder = old / "finished" / "legacy" / HASH
    assert "name: shapes\n" in (folder / "spec.yaml").read_text()
    spec = RunFolder(folder).spec(registry)
    assert spec.data.name == "grey_shapes"
    assert spec.data == load(old / "legacy.yaml").spec.data
    now = load(
        old / "legacy.yaml", ["data={name: shapes, train_images: 32, test_images: 16, size: 16, classes: 4}"]
    )
    assert folder_of(old / "finished", now.spec).path.name != HASH
    assert cli.main(["diff", str(folder), str(old / "legacy.yaml")]) == 0
    assert "data" not in capsys.readouterr().out


def test_shapes_of_today_that_were_recorded_stay_what_they_are(old: Path, tmp_path: Path) -> None:
    spec = load(
        old / "legacy.yaml", ["data={name: shapes, train_images: 32, test_images: 16, size: 16}"]
    ).spec
    RunFolder(tmp_path).write_spec(spec)
    assert RunFolder(tmp_path).spec(registry) == spec


def test_a_value_that_was_not_recorded_is_the_one_of_then(old: Path, tmp_path: Path) -> None:
    """VICReg had the formula as printed before there was `scaling`, whose default is the authors' code."""
    settings = ("head={name: mlp, hidden: 8, dim: 16}", "targets={name: identity}", "loss={name: vicreg}")
    text = dump_yaml(load(old / "legacy.yaml", settings).spec)
    assert "  scaling: code\n" in text
    (tmp_path / "spec.yaml").write_text(text.replace("  scaling: code\n", ""))
    assert RunFolder(tmp_path).spec(registry).loss.model_dump()["scaling"] == "paper"
    (tmp_path / "spec.yaml").write_text(text)
    assert RunFolder(tmp_path).spec(registry).loss.model_dump()["scaling"] == "code"


def test_a_finished_one_is_finished(old: Path, execute: Callable) -> None:
    outcome = execute(load(old / "legacy.yaml").spec, runs=old / "finished")
    assert (outcome.status, outcome.step, outcome.folder.name) == ("already finished", 16, HASH)
    assert outcome.scores_after == {"knn.1nn": 0.25, "knn.5nn": 0.4375}


def test_an_interrupted_one_ends_at_the_weights_of_the_finished_one(old: Path, execute: Callable) -> None:
    outcome = execute(load(old / "legacy.yaml").spec, runs=old / "interrupted")
    assert (outcome.status, outcome.folder.name) == ("finished", HASH)
    one, other = (
        load_file(old / runs / "legacy" / HASH / "backbone.safetensors")
        for runs in ("finished", "interrupted")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5)
    assert json.loads((outcome.folder / "identity.json").read_text())["hash"] == HASH


def test_evaluators_are_added_to_a_finished_one(old: Path, execute: Callable) -> None:
    spec = load(old / "legacy.yaml", ["evaluators=[{name: knn, k: [1, 5]}, {name: knn, k: [3]}]"]).spec
    before = (old / "finished" / "legacy" / HASH / "last.pt").read_bytes()
    outcome = execute(spec, runs=old / "finished")
    assert outcome.status == "already finished"
    assert outcome.scores_after.keys() == {"knn.1nn", "knn.5nn", "knn_2.3nn"} == outcome.scores_before.keys()
    rows = RunFolder(outcome.folder).rows()
    assert [row["step"] for row in rows if "knn_2.3nn" in row] == [0, 16]
    assert (outcome.folder / "last.pt").read_bytes() == before
    again = execute(spec, runs=old / "finished")
    assert again.scores_after == outcome.scores_after


def test_its_networks_open(old: Path) -> None:
    run = open_run(old / "interrupted" / "legacy" / HASH, registry)
    assert run.step == 6
    teacher, student = run.backbone("teacher"), run.network("student")
    assert teacher.head.__class__.__name__ == "Identity"
    images = torch.rand(2, 3, 16, 16)
    assert student([images[None]]).z.shape == (1, 2, 16)
    assert not torch.equal(teacher.encode(images), student.encode(images))


@pytest.mark.parametrize("runs", ["finished", "interrupted"])
def test_verbs_read_it(old: Path, runs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = old / runs / "legacy" / HASH
    assert cli.main(["eval", str(folder), "--device", "cpu"]) == 0
    assert cli.main(["export", str(folder), "--to", str(tmp_path / "model.safetensors")]) == 0
    assert cli.main(["report", str(folder), "--to", str(tmp_path / "report.html"), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert f"legacy {HASH}" in (tmp_path / "report.html").read_text()


def test_two_are_compared(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = sorted((old / "sweep" / "legacy").iterdir())
    assert cli.main(["compare", *map(str, folders)]) == 0
    assert "targets.temperature=0.04" in capsys.readouterr().out


def test_a_sweep_is_compared_where_it_was_moved_to(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (old / "sweep" / "_sweeps" / "sweep").iterdir()
    assert cli.main(["compare", str(folder)]) == 0
    assert "temperature=0.07" in capsys.readouterr().out


def test_how_a_trial_ended_is_read(old: Path) -> None:
    folder = next((old / "sweep" / "legacy").iterdir())
    status = read_status(folder)
    assert (status.state, status.step, status.verdict) == ("finished", 16, "learning")
    (folder / "result.json").unlink()
    ending = {
        "status": "stopped",
        "step": 8,
        "total": 16,
        "verdict": "learning",
        "reason": "",
        "seconds": 2.0,
    }
    (folder / "ending.json").write_text(json.dumps(ending))
    assert (read_status(folder).state, read_status(folder).seconds) == ("stopped", 2.0)
