"""`dino-lab data`: what a run would see of its images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_lab.cli.app import main

COUNT = 70  # training images of a class: more than a thread takes at once


def noise(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """70 + 35 training images and 8 test images of two classes."""
    for split, name, count, first in (
        ("train", "cat", COUNT, 0),
        ("train", "dog", COUNT // 2, 1000),
        ("test", "cat", 5, 2000),
        ("test", "dog", 3, 3000),
    ):
        folder = tmp_path / "pets" / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            noise(first + i).save(folder / f"{i:03}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "pets"


def found(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main(["data", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["data"]


def test_what_a_run_would_see(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(5000, 64, 48).save(root / "test/cat/wide.jpg")
    facts = found(capsys, str(root), "--set", "data.size=8")
    assert (facts["size"], facts["channels"]) == (8, 3)
    train, test = facts["splits"]["train"], facts["splits"]["test"]
    assert (train["images"], train["looked_at"]) == (COUNT * 3 // 2, COUNT * 3 // 2)
    assert train["classes"] == {"cat": COUNT, "dog": COUNT // 2}
    assert test["classes"] == {"cat": 6, "dog": 3}
    assert (train["formats"], test["formats"]) == ({"PNG": COUNT * 3 // 2}, {"PNG": 8, "JPEG": 1})
    assert train["kinds"] == {"3 x 8 bit": COUNT * 3 // 2}
    assert (test["width"], test["height"]) == ([20, 20, 64], [16, 16, 48])
    assert facts["duplicates"]["train"] == facts["duplicates"]["across"] == 0
    with Image.open(facts["picture"]) as picture:
        assert picture.width > picture.height > 400  # five rows of eight


def test_mean_and_deviation_of_each_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of training images: half of them black, half of one colour."""
    for split in ("train", "test"):
        for i in range(10):
            folder = tmp_path / "flat" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            colour = (255, 51, 0) if i % 2 and split == "train" else (0, 0, 0)
            Image.new("RGB", (8, 8), colour).save(folder / f"{i}.png")
    facts = found(capsys, str(tmp_path / "flat"), "--to", str(tmp_path / "x.png"))
    assert facts["mean"] == [0.5, 0.1, 0.0]
    assert facts["std"] == [0.5, 0.1, 0.0]
    assert facts["picture"] == str(tmp_path / "x.png")
    # Two pictures, of which one is there nine times in training; black ones are in the test split too.
    its = facts["duplicates"]
    assert (its["train"], its["test"], its["across"]) == (8, 9, 10)


def test_doubles_and_leaks_are_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise(3).save(root / "test/cat/leak.png")
    noise(4).save(root / "train/dog/again.png")
    noise(2000).save(root / "test/cat/again.bmp")  # another file, the same image
    its = found(capsys, str(root))["duplicates"]
    assert (its["train"], its["test"], its["across"], its["other_label"]) == (1, 1, 1, 1)
    assert its["first"] == [["test: test/cat/leak.png", "train: train/cat/003.png"]]
    assert main(["data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "1 test images are training images as well" in " ".join(out.split())
    assert "test: test/cat/leak.png = train: train/cat/003.png" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_cannot_be_read_is_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train/cat/000.png").write_bytes(b"\x89PNG no more")
    facts = found(capsys, str(root))
    train = facts["splits"]["train"]
    assert (train["unreadable"], train["looked_at"]) == (1, COUNT * 3 // 2)
    assert train["unreadable_first"][0].startswith(f"{root / 'train/cat/000.png'}: ")


def test_grey_values_are_scaled_as_in_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        for i in range(4):
            folder = tmp_path / "scans" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 4095 * (i % 2), np.uint16)).save(folder / f"{i}.png")
    facts = found(capsys, str(tmp_path / "scans"), "--to", str(tmp_path / "x.png"))
    assert facts["splits"]["train"]["values"] == [0, 4095]
    assert facts["splits"]["train"]["kinds"] == {"1 x 16 bit": 4}
    assert facts["mean"] == [0.5, 0.5, 0.5]  # white is 4095
    assert any("white is 4095" in note for note in facts["notes"])


def test_bands_have_the_values_of_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for i in range(4):
            folder = tmp_path / "bands" / split / "ab"[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            values = np.full((8, 8, 5), 10 * i, np.uint16)
            values[..., 4] = 4000
            np.save(folder / f"{i}.npy", values)
    chosen = ("bands", "--set", "data.channels=[1, 5]")
    assert main(["data", *chosen]) == 2
    assert "0.npy: values of 16 bits (uint16) have no stated range; say in data.range" in (
        capsys.readouterr().err
    )
    statistics = ("--set", "data.mean=[0, 0]", "--set", "data.std=[1, 1]")
    facts = found(capsys, *chosen, "--set", "data.range=[0, 8000]", *statistics)
    assert facts["splits"]["train"]["values"] == [0, 4000]
    assert facts["splits"]["train"]["kinds"] == {"5 x 16 bit": 4}
    assert facts["mean"] == [0.002, 0.502]  # of 255: 0, 0, 1 and 1; and 128
    assert facts["duplicates"]["train"] == 2


def test_a_limit_is_spread_over_the_split(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = found(capsys, str(root), "--limit", "6")
    assert facts["splits"]["train"]["looked_at"] == 6
    for i in (0, 17, 35, 52):  # 105 images over 6, from the first on; 70 and 87 are dogs
        (root / f"train/cat/{i:03}.png").write_bytes(b"\x89PNG no more")
    assert found(capsys, str(root), "--limit", "6")["splits"]["train"]["unreadable"] == 4


def test_drawn_images_and_the_data_of_evaluate_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    on = "evaluate_on={name: shapes, train_images: 30, test_images: 10, size: 16, classes: 3}"
    assert main(["data", str(tiny), "--set", on, "--json", "--limit", "20"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["data"]["splits"]["train"]["looked_at"] == 20
    assert facts["evaluate_on"]["splits"]["train"]["images"] == 30
    assert len(facts["evaluate_on"]["splits"]["test"]["classes"]) == 3
    assert {Path(its["picture"]).name for its in facts.values()} == {
        "tiny.data.png",
        "tiny.evaluate_on.png",
    }


@pytest.mark.parametrize("kind", ["packed", "shards"])
def test_packs_and_shards_hold_the_same(
    root: Path, tiny: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    to = root.parent / kind
    given = ["--set", "data.size=16"] if kind == "packed" else ["--shards"]
    assert main(["pack", str(root), "--to", str(to), *given]) == 0
    data: dict[str, Any] = {"name": kind, "path": str(to)}
    if kind == "shards":
        data = {
            "name": kind,
            "path": f"{to}/train-*.tar",
            "test": f"{to}/test-*.tar",
            "size": 16,
            "label": "cls",
        }
    there = found(capsys, str(tiny), "--set", f"data={json.dumps(data)}")
    here = found(capsys, str(root), "--set", "data.size=16")
    assert there["mean"] == here["mean"]
    for split, its in here["splits"].items():
        assert there["splits"][split]["looked_at"] == its["looked_at"]
        assert list(there["splits"][split]["classes"].values()) == list(its["classes"].values())
    assert there["splits"]["test"]["formats"] == {"no file" if kind == "packed" else "PNG": 8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file"),
        (["pets", "--to", "x.jpg"], "--to x.jpg: should be a file that ends in .png"),
        (["pets", "--set", "data.test_fraction=0.5"], "leave out test_fraction"),
        (["pets", "--set", "data.sise=5"], "data.sise"),
    ],
)
def test_wrong_requests(
    root: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
