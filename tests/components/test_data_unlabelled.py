"""Images without labels, wherever they lie, and what a run makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_data_found import grow, opened, passed, total

from dino_lab.components.data._pack import pack
from dino_lab.errors import Misfit, UserError
from dino_lab.registry import registry
from dino_lab.training.build import build

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images, eight of them below folders that are no classes; the current folder."""
    grow(tmp_path / "photos", 4)
    grow(tmp_path / "photos" / "2020", 4, 10)
    grow(tmp_path / "photos" / "2020" / "summer", 4, 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def names(data: Any) -> set[str]:
    """Of the images of both splits, below the folder that they share."""
    found = set()
    for split in ("train", "test"):
        source = data.storage(split)
        found |= {f"{split[:2]} {int(value)}" for value in source.images.sum((1, 2, 3))}
    return found


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    data = opened(grow(tmp_path / "flat", 40))
    assert not data.labelled
    assert total(data) == 40
    assert data.test_images > 0
    assert data.found().lines() == [
        f"data: train {data.train_images} images without labels, test {data.test_images} images without labels"
    ]


def test_folders_are_classes_unless_labels_are_none(photos: Path) -> None:
    (photos / "2021").mkdir()
    grow(photos / "2021", 3, 50)
    found = opened(photos, test_fraction=0.5)
    assert found.labelled
    assert passed(found)["image in no folder of a class"] == 4
    nested = opened(photos, labels="none")
    assert not nested.labelled
    assert total(nested) == 15
    assert passed(nested) == {}


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("photos/*.png", 4),
        ("photos/**/*.png", 12),
        ("photos/*/*/00[12].png", 2),
        (["photos/2020", "photos/2020/summer/000.png*"], 8),
        (["photos/2020/summer"], 4),
    ],
)
def test_patterns_and_several_folders(photos: Path, path: Any, count: int) -> None:
    data = opened(photos, path=path)
    assert not data.labelled
    assert total(data) == count


def test_an_image_that_is_named_twice_is_taken_once(photos: Path) -> None:
    data = opened(photos, path=["photos/2020", "photos/2020/summer"])
    assert total(data) == 8
    assert passed(data) == {"image that is named twice": 4}


def test_a_list_of_files(photos: Path) -> None:
    (photos / "mine.txt").write_text("000.png\n\n2020/001.png\n  2020/summer/002.png \n")
    assert total(opened(photos, path="photos/mine.txt")) == 3
    (photos / "mine.txt").write_text("000.png\nnone.png\n")
    with pytest.raises(UserError, match=r"mine\.txt:2: none\.png is no file$"):
        opened(photos, path="photos/mine.txt")
    with pytest.raises(Misfit, match=r"000\.png is neither a folder nor a text file"):
        opened(photos, path="photos/000.png")


def test_what_gives_no_image_is_said(photos: Path) -> None:
    (photos / "empty").mkdir()
    for path in ("photos/*.bmp", ["photos/2020", "photos/empty"]):
        with pytest.raises(UserError, match=r"(\*\.bmp|empty): gives no image$"):
            opened(photos, path=path)
    with pytest.raises(Misfit, match="nothere is not a folder"):
        opened(photos, path=["photos/2020", "nothere"])
    with pytest.raises(UserError, match="holds neither class folders nor images"):
        opened(photos / "empty")


def test_splits_of_unlabelled_images(photos: Path) -> None:
    with pytest.raises(Misfit, match=r"data\.test_fraction: .* set data\.test_fraction: 0\.1"):
        opened(photos, labels="none", test_fraction=None)
    grow(photos / "train" / "deep", 5, 60)
    grow(photos / "test", 2, 70)
    data = opened(photos, labels="none", test_fraction=None)
    assert (data.train_images, data.test_images, data.labelled) == (5, 2, False)


def test_an_image_stays_in_its_split_when_others_come(photos: Path) -> None:
    grow(photos / "2020" / "summer", 40, 100)
    before = names(opened(photos, path=["photos/2020/summer"]))
    after = names(opened(photos, path=["photos/2020/summer", "photos/2020/*.png", "photos"]))
    assert before < after


def test_evaluators_that_compare_labels_are_left_out(
    tmp_path: Path, tiny_spec: Callable[..., Any], execute: Callable[..., Any], capsys: Any
) -> None:
    from dino_lab.cli.plain import PlainView

    grow(tmp_path / "flat", 40)
    data = f"data={{name: image_folder, path: {json.dumps(str(tmp_path / 'flat'))}, size: 16, test_fraction: 0.3}}"
    evaluators = "evaluators=[{name: knn, k: [3]}, {name: spectrum}, {name: linear_probe, epochs: 1}]"
    spec = tiny_spec(data, evaluators, "train.epochs=1", "train.batch_size=8")
    run = build(spec, registry, CPU)
    assert list(run.evaluators) == ["spectrum"]
    assert run.left_out == ("knn", "linear_probe")
    outcome = execute(spec, listeners=[PlainView(spec, "cpu")])
    assert "note: without labels there is no knn, linear_probe; spectrum and invariance need none" in (
        capsys.readouterr().out
    )
    row = json.loads((outcome.folder / "rows.jsonl").read_text().splitlines()[-1])
    assert [name for name in row if "." in name] != []
    assert all(name.startswith("spectrum.") for name in row if "." in name)


def test_a_method_that_needs_classes_is_refused(tmp_path: Path, tiny_spec: Callable[..., Any]) -> None:
    grow(tmp_path / "flat", 40)
    data = f"data={{name: image_folder, path: {json.dumps(str(tmp_path / 'flat'))}, size: 16, test_fraction: 0.3}}"
    supervised = (
        "teacher={name: labels}",
        "targets={name: identity}",
        "head={name: linear, dim: 1}",
        "optim={name: sgd, lr: 0.1}",
    )
    with pytest.raises(Misfit, match="teacher: labels tells the classes of images, and these have no labels"):
        build(tiny_spec(data, *supervised, "train.batch_size=8", "evaluators=[]"), registry, CPU)


def test_parquet_without_a_column_of_labels_and_packs_of_it(tmp_path: Path) -> None:
    files = sorted(grow(tmp_path / "images", 12).iterdir())
    for split, some in (("train", files[:9]), ("test", files[9:])):
        pq.write_table(
            pa.table({"image": [file.read_bytes() for file in some]}), tmp_path / f"{split}.parquet"
        )
    keys = {"name": "parquet", "path": str(tmp_path), "size": 8, "label_column": None}
    data = registry.build("data", registry.find("data", "parquet").params.model_validate(keys), CPU)
    assert not data.labelled
    pack(data, {}, tmp_path / "pack", lambda *_: None)
    packed = registry.find("data", "packed").params.model_validate(
        {"name": "packed", "path": str(tmp_path / "pack")}
    )
    assert not registry.build("data", packed, CPU).labelled
