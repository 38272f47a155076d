"""Shards that `dino-lab pack --shards` writes: the same files, whatever interrupts."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from components.made_shards import CPU
from PIL import Image

from dino_lab.cli.app import main
from dino_lab.components.data import _shard_writer
from dino_lab.components.data._shard_writer import write_shards
from dino_lab.components.data._storage import never_resident
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.shapes import Shapes
from dino_lab.components.data.shards import Shards
from dino_lab.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_shard_writer, "SHARD_IMAGES", 8)
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """20 training and 6 test images in two classes, JPEG and PNG."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 10), ("test", 3)):
        for name, suffix in (("cat", "jpeg"), ("dog", "png")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.{suffix}")
    return tmp_path / "photos"


def contents(folder: Path) -> set[bytes]:
    found = set()
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png")):
                    its = tar.extractfile(member)
                    assert its is not None
                    found.add(its.read())
    return found


def test_shards_as_a_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "shards"
    assert main(["pack", str(photos), "--to", str(to), "--shards"]) == 0
    said = capsys.readouterr().out
    assert f"{to}: 20 + 6 images in 3 + 1 shards; 20 written" not in said
    assert f"{to}: 20 + 6 images in 3 + 1 shards; 26 written now" in said
    paths = f"path: {to}/train-*.tar, test: {to}/test-*.tar"
    assert f"in a spec: data: {{name: shards, {paths}, size: 256, label: cls}}" in said
    assert contents(to) == {file.read_bytes() for file in photos.rglob("*.*g")}
    data = Shards(CPU, path=f"{to}/train-*.tar", test=f"{to}/test-*.tar", size=8, label="txt")
    assert data.class_names == ("cat", "dog")
    files = ImageFolder(CPU, path=str(photos), size=8)
    ours, theirs = (
        {
            (image.numpy().tobytes(), int(label))
            for batch in its.bank(4)
            for image, label in zip(*batch, strict=True)
        }
        for its in (data, files)
    )
    assert ours == theirs
    for (images, labels), (others, their_labels) in zip(data.test(6), files.test(6), strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)
    first = next(data.bank(8))[1].tolist()
    assert len(set(first)) == 2, "a shard is not of one class"
    assert main(["pack", str(photos), "--to", str(to), "--shards"]) == 0
    assert "nothing was missing" in capsys.readouterr().out


def test_what_was_stopped_goes_on_and_what_is_damaged_is_repaired(photos: Path, tmp_path: Path) -> None:
    with never_resident():
        data = ImageFolder(CPU, path=str(photos), size=8)
    to = tmp_path / "shards"

    def stop(done: int, total: int) -> None:
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(data, to, tmp_path, stop)
    assert [file.name for file in sorted(to.glob("*.tar"))] == ["train-00000.tar"]
    assert write_shards(data, to, tmp_path, lambda *_: None) == ({"train": 3, "test": 1}, 18)
    whole = {file.name: file.read_bytes() for file in to.glob("*.tar")}
    (to / "train-00001.tar").write_bytes(whole["train-00001.tar"][:3000])
    assert write_shards(data, to, tmp_path, lambda *_: None)[1] == 8
    assert {file.name: file.read_bytes() for file in to.glob("*.tar")} == whole
    os.rename(photos / "train" / "dog" / "00.png", photos / "train" / "cat" / "aa.png")
    with never_resident():
        other = ImageFolder(CPU, path=str(photos), size=8)
    with pytest.raises(UserError, match=r"train-0000\d\.tar: is a shard of other data; write into another"):
        write_shards(other, to, tmp_path, lambda *_: None)
    with pytest.raises(UserError, match=r"photos/test: is no shard of these data; write into another folder"):
        write_shards(data, photos, tmp_path, lambda *_: None)


def test_images_without_files_are_written_as_pixels(tmp_path: Path) -> None:
    data = Shapes(CPU, size=16, classes=3, train_images=20, test_images=10)
    write_shards(data, tmp_path / "shards", tmp_path, lambda *_: None)
    paths = {"path": f"{tmp_path}/shards/train-*.tar", "test": f"{tmp_path}/shards/test-*.tar"}
    again = Shards(CPU, size=16, label="cls", **paths)
    assert torch.equal(next(again.test(10))[0], next(data.test(10))[0])
    assert torch.equal(next(again.test(10))[1], next(data.test(10))[1])
