"""Data and the other parts of a spec: what does not go together is told before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dino_lab.building.data_check import check_data, check_labels
from dino_lab.cli.app import main
from dino_lab.components.augment.two_view import TwoView
from dino_lab.components.data.packed import Packed
from dino_lab.errors import Misfit, UserError
from dino_lab.registry import registry

CPU = torch.device("cpu")


class Images:
    """Black images with given labels."""

    size, mean, std = 16, (0.5,), (0.5,)

    def __init__(self, train: list[int], test: list[int], channels: int = 1) -> None:
        self._labels = {"train": torch.tensor(train), "test": torch.tensor(test)}
        self.channels, self.mean, self.std = channels, (0.5,) * channels, (0.5,) * channels
        self.train_images, self.test_images, self.classes = len(train), len(test), 2

    def labels(self, split: str) -> Tensor:
        return self._labels[split]

    def bank(self, batch_size: int) -> Iterator[Any]:
        raise AssertionError("no image is looked at")

    test = train = bank


def evaluator(name: str, **given: Any) -> Any:
    return registry.build(
        "evaluator", registry.find("evaluator", name).params.model_validate({"name": name, **given})
    )


@pytest.mark.parametrize(
    "name", ["knn", "logistic", "linear_probe", "low_shot", "fine_tune", "clusters", "retrieval"]
)
def test_one_class_gives_no_score(name: str) -> None:
    with pytest.raises(UserError, match=f"^evaluator {name} compares classes, and all .* images are of one"):
        check_labels(evaluator(name), Images([0] * 9, [0] * 9))
    check_labels(evaluator(name), Images([0, 1], [0, 1]))


@pytest.mark.parametrize(
    ("name", "given", "train", "test", "fits"),
    [
        ("knn", {}, [0, 1], [1, 1], True),  # one class of two is asked for
        ("knn", {}, [1, 1], [0, 1], False),  # whose neighbours are always right
        ("clusters", {}, [0, 1], [1, 1], False),
        ("clusters", {}, [1, 1], [0, 1], True),
        ("knn", {}, [0, 1], [2, 3], False),
        ("knn", {}, [0, 1], [1, 3], True),
        ("retrieval", {}, [0, 1], [2, 3], False),
        ("retrieval", {"database": "test"}, [0, 1], [2, 3], True),
        ("retrieval", {"database": "test"}, [0, 1], [2, 2], False),
        ("retrieval", {"benchmark": {"path": "x"}}, [0, 0], [0, 0], True),
        ("spectrum", {}, [0, 0], [0, 0], True),
        ("invariance", {}, [0, 0], [0, 0], True),
        ("copy_detection", {}, [0, 0], [0, 0], True),
    ],
)
def test_which_labels_give_a_score(
    name: str, given: dict[str, Any], train: list[int], test: list[int], fits: bool
) -> None:
    if fits:
        check_labels(evaluator(name, **given), Images(train, test))
    else:
        with pytest.raises(UserError, match=f"^evaluator {name} compares"):
            check_labels(evaluator(name, **given), Images(train, test))


@pytest.mark.parametrize(
    ("data", "batch_size", "loc", "message"),
    [
        (
            Images([0, 1] * 4, [0, 1], channels=6),
            4,
            ("augment",),
            "refuses images of 6 channels and 16 x 16 px",
        ),
        (Images([0, 1], [0, 1]), 4, ("train", "batch_size"), "4 is more than the 2 training images"),
        (Images([], [0, 1]), 4, ("data",), "no training split"),
        (Images([0] * 8, [0]), 4, ("evaluators", 0), "all training images are of one"),
    ],
)
def test_a_misfit_says_which_key(data: Any, batch_size: int, loc: tuple[str, ...], message: str) -> None:
    with pytest.raises(Misfit, match=message) as error:
        check_data(data, TwoView(size=16), [evaluator("knn")], batch_size, CPU)
    assert error.value.loc == loc


def test_mean_has_a_number_a_channel() -> None:
    data = Images([0, 1] * 4, [0, 1], channels=3)
    data.mean = (0.5,)
    with pytest.raises(Misfit, match="mean has 1 numbers for 3 channels"):
        check_data(data, TwoView(size=16), [], 4, CPU)  # type: ignore[arg-type]


# ---- validate and pack


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of two classes, a text and an empty folder."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(40):
            Image.new("RGB", (16, 16), (i, 9, 9)).save(root / name / f"{i}.png")
    (root / "cat" / "notes.txt").write_text("")
    (root / "empty").mkdir()
    return root


def setting(path: Path | str) -> list[str]:
    data = {"name": "image_folder", "path": str(path), "size": 16, "test_fraction": 0.25}
    return ["--set", f"data={json.dumps(data)}"]


def test_validate_looks_at_the_data(tiny: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(tiny), *setting(photos)]) == 0
    out = capsys.readouterr().out
    assert "\n  data: train 57 images of 2 classes, test 23 images of 2 classes (cat, dog)\n" in out
    assert "\n  passed over: 1 no image (.txt): cat/notes.txt; 1 folder without an image: empty\n" in out
    assert main(["validate", str(tiny)]) == 0
    assert "\n  data: train 96 images of 10 classes, test 48 images" in capsys.readouterr().out


def test_validate_refuses_what_run_would(
    tiny: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(tiny), *setting("/nowhere")]) == 2
    assert capsys.readouterr().err.endswith("data.path: /nowhere is not a folder\n")
    assert main(["validate", str(tiny), *setting(photos), "--set", "train.batch_size=70"]) == 2
    assert "70 is more than the 57 training images" in capsys.readouterr().err
    (photos / "dog").rename(photos / ".dog")
    assert main(["validate", str(tiny), *setting(photos)]) == 2
    error = capsys.readouterr().err
    assert ": evaluators.0: evaluator knn compares classes" in error
    assert error.count("\n") == 1


def test_validate_fetches_nothing(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = {"name": "torchvision", "dataset": "CIFAR10", "path": str(tmp_path / "none"), "size": 16}
    given = ["validate", str(tiny), "--set", f"data={json.dumps({**data, 'download': True})}"]
    assert main(given) == 0
    assert "data: not there yet; the run downloads it" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_pack_says_what_was_found(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        str(photos),
        "--to",
        str(tmp_path / "pack"),
        "--set",
        "data.size=8",
        "--set",
        "data.test_fraction=0.25",
    ]
    assert main(["pack", *given]) == 0
    assert "passed over: 1 no image (.txt)" in capsys.readouterr().out
    notes = Packed(CPU, path=str(tmp_path / "pack")).found().notes
    assert notes[0] == "when it was packed, passed over: 1 no image (.txt): cat/notes.txt"
