"""Images to evaluate on that are others than those that train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dino_lab.cli.app import main
from dino_lab.errors import Misfit, UserError
from dino_lab.evaluation.subjects import run_subject
from dino_lab.registry import registry
from dino_lab.reports.learned_picture import write_learned
from dino_lab.runs.folder import RunFolder
from dino_lab.spec.file import load
from dino_lab.training.build import build

CPU = torch.device("cpu")
LABELLED = "evaluate_on={name: shapes, train_images: 40, test_images: 20, size: 16, classes: 4}"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """32 images without labels, as a setting."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(32):
        Image.new("RGB", (16, 16), (8 * i, 255 - 8 * i, (i * 37) % 256)).save(folder / f"{i}.png")
    return f"data={{name: image_folder, path: {folder}, size: 16, test_fraction: 0.1}}"


def scores_of(folder: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in row.items() if key.startswith(("knn", "spectrum"))}
        for row in RunFolder(folder).rows()
    ]


def test_images_without_labels_are_scored_on_others(
    photos: str, tiny_spec: Callable, execute: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (photos, LABELLED, "train.batch_size=8", "train.epochs=1")
    run = build(tiny_spec(*settings), registry, CPU)
    assert run.left_out == ()
    assert (run.data.classes, run.evaluation_data.classes) == (1, 4)
    outcome = execute(tiny_spec(*settings))
    assert "knn.5nn" in outcome.scores_before
    assert "knn.5nn" in outcome.scores_after
    # Floors are those of the labelled images: 4 classes as often as each other.
    assert outcome.floors["knn.5nn"]["chance"] == pytest.approx(0.25, abs=0.1)
    facts = json.loads((outcome.folder / "env.json").read_text())
    assert facts["evaluate_on"]["splits"] == {
        "train": {"images": 40, "classes": 4},
        "test": {"images": 20, "classes": 4},
    }
    subject = run_subject(outcome.folder, registry, CPU)
    assert subject.data.test_images == 20
    assert subject.score()[0].named_scores["knn.5nn"] == outcome.scores_after["knn.5nn"]
    assert subject.floors() == outcome.floors
    assert write_learned(outcome.folder, registry, CPU, run.data, run.evaluation_data).is_file()


def test_they_do_not_decide_the_weights(tiny_spec: Callable) -> None:
    alone, beside = tiny_spec(), tiny_spec(LABELLED)
    assert alone.hash == beside.hash
    assert alone.hash == tiny_spec("evaluate_on=null").hash
    states = [build(spec, registry, CPU).student.state_dict() for spec in (alone, beside)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_finished_run_is_scored_anew_on_other_images(tiny_spec: Callable, execute: Callable) -> None:
    first = execute(tiny_spec())
    rows = scores_of(first.folder)
    assert sum(map(bool, rows)) == 4
    again = execute(tiny_spec(LABELLED))
    assert again.status == "already finished"
    assert again.folder == first.folder
    # Those between were of other images, and their weights are gone.
    assert [bool(row) for row in scores_of(first.folder)] == [True, *[False] * (len(rows) - 2), True]
    assert again.scores_after["knn.5nn"] == run_subject(first.folder, registry, CPU).score()[0].scores["5nn"]
    assert execute(tiny_spec(LABELLED)).scores_after == again.scores_after


def test_changed_images_are_told(tiny_spec: Callable, execute: Callable, tmp_path: Path) -> None:
    for split, images in (("train", 12), ("test", 6)):
        for i in range(images):
            folder = tmp_path / "labelled" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"{i}.png")
    spec = tiny_spec(f"evaluate_on={{name: image_folder, path: {tmp_path / 'labelled'}, size: 16}}")
    execute(spec)
    Image.new("RGB", (16, 16)).save(tmp_path / "labelled/test/a/new.png")
    with pytest.raises(UserError, match=r"was evaluated on other data \(evaluate_on.path has other files\)"):
        execute(spec)
    assert execute(spec, accept_data=True).status == "already finished"


def test_an_evaluator_is_added_where_others_are_left_out(
    photos: str, tiny_spec: Callable, execute: Callable
) -> None:
    short = (photos, "train.batch_size=8", "train.epochs=1")
    first = execute(tiny_spec(*short, "evaluators=[{name: knn}]"))
    assert first.scores_after == {}
    again = execute(tiny_spec(*short, "evaluators=[{name: knn}, {name: spectrum}]"))
    assert {name.partition(".")[0] for name in again.scores_after} == {"spectrum"}


def test_runs_of_one_process_share_them(tiny_spec: Callable) -> None:
    one, two, other = (
        build(tiny_spec(LABELLED, setting), registry, CPU)
        for setting in ("seed=0", "seed=1", "evaluate_on.classes=3")
    )
    assert one.evaluation_data is two.evaluation_data
    assert other.evaluation_data.classes == 3


def test_a_parquet_set_beside_a_folder(photos: str, tiny_spec: Callable, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for split in ("train", "test"):
        rows = [{"image": {"bytes": content, "path": None}, "label": i % 2} for i in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.parquet")
    on = f"evaluate_on={{name: parquet, path: {tmp_path}, size: 8}}"
    run = build(tiny_spec(photos, on, "train.batch_size=8"), registry, CPU)
    assert (run.data.size, run.evaluation_data.size) == (16, 8)
    assert 0 <= run.evaluate(run.due(0))[0].scores["5nn"] <= 1


class GreyImages:
    """What is asked of images of one channel before they are seen."""

    channels, classes, size, train_images, test_images = 1, 2, 8, 4, 4


def test_what_does_not_fit_is_told_in_one_line(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*settings: str) -> str:
        given = [part for setting in settings for part in ("--set", setting)]
        assert main(["validate", str(tiny), *given]) == 2
        return capsys.readouterr().err.strip()

    where = "data={name: image_folder, path: /nowhere, size: 16}"
    assert said(f"evaluate_on={where.partition('=')[2]}").endswith(
        "evaluate_on.path: /nowhere is not a folder"
    )
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "flat/1.png")
    flat = said(f"evaluate_on={{name: image_folder, path: {tmp_path / 'flat'}, size: 16}}")
    assert "evaluate_on.test_fraction: images without labels" in flat
    assert "set evaluate_on.test_fraction: 0.1" in flat
    assert "unknown key" in said("evaluate_on={name: shapes, sise: 3}")
    spec = load(tiny, (LABELLED,)).spec
    make = registry.build

    def grey(kind: str, params: Any, *context: Any) -> Any:
        return GreyImages() if params == spec.evaluate_on else make(kind, params, *context)

    monkeypatch.setattr(registry, "build", grey)
    with pytest.raises(Misfit, match="evaluate_on: its images have 1 channels, and those of data 3"):
        build(spec, registry, CPU)
