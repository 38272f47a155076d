"""Data sets of the Hugging Face hub, from folders that its library wrote and read."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.components.data.hf import HuggingFace
from dino_lab.errors import Misfit, UserError

datasets = pytest.importorskip("datasets")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    yield
    datasets.enable_progress_bars()


def _png(value: int) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(np.full((10, 12, 3), value, np.uint8)).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def _written(folder: Path, **columns: tuple[Any, list[Any]]) -> str:
    """A data set of two splits, train and test, of one picture for each value."""
    length = len(next(iter(columns.values()))[1])
    kinds = {"picture": datasets.Image(), **{name: kind for name, (kind, _) in columns.items()}}
    splits = {}
    for name, first in (("train", 0), ("test", 100)):
        rows = {
            "picture": [_png(first + i) for i in range(length)],
            **{n: its for n, (_, its) in columns.items()},
        }
        splits[name] = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


def test_classes_have_their_names_and_images_their_pixels(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", label=(datasets.ClassLabel(names=["cat", "dog"]), [1, 0, 1]))
    data = HuggingFace(CPU, dataset=path, size=8)
    assert data.class_names == ("cat", "dog")
    images, labels = next(iter(data.test(3)))
    assert labels.tolist() == [1, 0, 1]
    assert images[:, 0, 0, 0].tolist() == [100, 101, 102]
    assert images.shape == (3, 3, 8, 8)
    assert data.found().notes == ()


def test_texts_are_numbered_in_their_order(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", kind=(datasets.Value("string"), ["pear", "apple", "pear"]))
    data = HuggingFace(CPU, dataset=path, size=8, label_column="kind")
    assert data.class_names == ("apple", "pear")
    assert data.labels("train").tolist() == [1, 0, 1]


def test_whole_numbers_with_gaps(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", label=(datasets.Value("int64"), [7, 3, 7]))
    data = HuggingFace(CPU, dataset=path, size=8)
    assert data.class_names == ("3", "7")
    assert data.labels("test").tolist() == [1, 0, 1]


def test_without_labels(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", label=(datasets.Value("int64"), [7, 3]))
    data = HuggingFace(CPU, dataset=path, size=8, label_column=None)
    assert not data.labelled
    assert data.labels("train").tolist() == [0, 0]


def test_a_folder_of_images_and_a_slice_of_a_split(tmp_path: Path) -> None:
    for i in range(4):
        folder = tmp_path / "photos" / "train" / ("a" if i % 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((9, 9, 3), 10 * i, np.uint8)).save(folder / f"{i}.png")
    data = HuggingFace(CPU, dataset=str(tmp_path / "photos"), size=8, train="train[:3]", test="train[3:]")
    assert (data.train_images, data.test_images) == (3, 1)
    assert data.class_names == ("a", "b")
    assert next(iter(data.bank(3)))[0][:, 0, 0, 0].tolist() == [10, 30, 0]  # in the order of the paths


@pytest.mark.parametrize(
    ("changed", "key", "said"),
    [
        ({"test": "validation"}, "test", "there is: test, train"),
        ({"label_column": "breed"}, "label_column", "columns of classes: none"),
        ({"label_column": "score"}, "label_column", "float is no label"),
        ({"image_column": "image"}, "image_column", "there is: picture"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changed: dict[str, Any], key: str, said: str) -> None:
    path = _written(
        tmp_path / "set", label=(datasets.Value("int64"), [1]), score=(datasets.Value("float64"), [0.5])
    )
    with pytest.raises(Misfit, match=said) as caught:
        HuggingFace(CPU, **{"dataset": path, "size": 8, **changed})
    assert caught.value.loc == ("data", key)


def test_slices_of_a_written_split(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", label=(datasets.Value("int64"), [0, 1, 0, 1]))
    data = HuggingFace(CPU, dataset=path, size=8, train="train[:50%]", test="train[2:3]+train[3:]")
    assert next(iter(data.bank(2)))[0][:, 0, 0, 0].tolist() == [0, 1]
    assert next(iter(data.test(2)))[0][:, 0, 0, 0].tolist() == [2, 3]


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    path = _written(tmp_path / "set", label=(datasets.Value("int64"), [1, None]))
    with pytest.raises(UserError, match="row 1: the label is missing or hidden"):
        HuggingFace(CPU, dataset=path, size=8)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    rows = {"image": [{"bytes": b"no image", "path": None}], "label": [0]}
    kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    one = datasets.Dataset.from_dict(rows, features=kinds)
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match="train: row 0: unreadable image"):
        HuggingFace(CPU, dataset=str(tmp_path / "set"), size=8)


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(Misfit, match="ylecun/mnist could not be had") as caught:
        HuggingFace(CPU, dataset="ylecun/mnist", size=8)
    assert "\n" not in str(caught.value)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'dino-lab\[hf\]'"):
        HuggingFace(CPU, dataset="ylecun/mnist", size=8)
