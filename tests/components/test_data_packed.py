"""Packs: the same data as unpacked, whatever interrupts, and one line for whatever is damaged."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.cli.app import main
from dino_lab.components.data import _pack, _storage
from dino_lab.components.data._labelled import FileOptions, Labelled
from dino_lab.components.data._pack import pack
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.packed import Packed
from dino_lab.components.data.shapes import Shapes
from dino_lab.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 training and 8 test images in two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 15), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven images a shard, four a batch."""
    monkeypatch.setattr(_pack, "SHARD_BYTES", 7 * 3 * 8 * 8)
    monkeypatch.setattr(_pack, "BATCH", 4)


def opened(photos: Path, **given: Any) -> ImageFolder:
    options = FileOptions(mean=(0.1, 0.2, 0.3), **given)
    return ImageFolder(CPU, path=str(photos), size=8, options=options)


def write(data: Labelled, to: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    return pack(data, {"name": "image_folder"}, to, progress)[1]


def assert_same(a: Labelled, b: Labelled) -> None:
    for key in ("classes", "class_names", "size", "channels", "train_images", "test_images", "mean", "std"):
        assert getattr(a, key) == getattr(b, key), key
    streams: list[Callable[[Labelled], Any]] = [
        lambda data: data.bank(4),
        lambda data: data.test(3),
        lambda data: islice(data.train(7, seed=3, start=2), 9),
    ]
    for stream in streams:
        for (images, labels), (others, their_labels) in zip(stream(a), stream(b), strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, their_labels)


@pytest.mark.parametrize("share", [0.4, 0.0], ids=["resident", "mapped"])
def test_a_pack_is_the_data(
    photos: Path, tmp_path: Path, small_shards: None, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = opened(photos)
    assert write(data, tmp_path / "pack") == 38
    monkeypatch.setattr(_storage, "RESIDENT_SHARE", share)
    packed = Packed(CPU, path=str(tmp_path / "pack"))
    assert type(packed.storage("train")).__name__ == ("Resident" if share else "_Mapped")
    assert_same(packed, data)
    assert_same(Packed(CPU, path=str(tmp_path / "pack"), limit=11), opened(photos, limit=11))
    assert {path.name for path in (tmp_path / "pack").iterdir()} == {
        "lock",
        "pack.json",
        "train.labels.npy",
        "test.labels.npy",
        *(f"train-0000{i}{kind}.npy" for i in range(5) for kind in ("", ".crc")),
        *(f"test-0000{i}{kind}.npy" for i in range(2) for kind in ("", ".crc")),
    }


def test_drawn_images_can_be_packed_too(tmp_path: Path) -> None:
    data = Shapes(CPU, size=16, classes=3, train_images=20, test_images=10)
    write(data, tmp_path / "pack")
    assert_same(Packed(CPU, path=str(tmp_path / "pack")), data)


@pytest.mark.parametrize("after", [4, 12, 30, 36])
def test_an_interrupted_pack_goes_on(photos: Path, tmp_path: Path, small_shards: None, after: int) -> None:
    data, folder = opened(photos), tmp_path / "pack"

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(data, folder, stop)
    with pytest.raises(UserError, match=r"pack is not finished; the same `dino-lab pack` again goes on"):
        Packed(CPU, path=str(folder))
    there = {path: path.stat().st_mtime_ns for path in folder.glob("*-*.npy")}
    written = write(data, folder)
    assert written < 38 or after < 7
    assert all(path.stat().st_mtime_ns == time for path, time in there.items() if "crc" not in path.name)
    assert not list(folder.glob(".*"))
    assert_same(Packed(CPU, path=str(folder)), data)
    assert write(data, folder) == 0


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": lambda folder: flip(folder / "train-00002.npy"),
    "cut short": lambda folder: (folder / "train-00002.npy").write_bytes(
        (folder / "train-00002.npy").read_bytes()[:-1]
    ),
    "gone": lambda folder: (folder / "train-00002.npy").unlink(),
    "no checksums": lambda folder: (folder / "train-00002.crc.npy").unlink(),
    "empty": lambda folder: (folder / "train-00002.npy").write_bytes(b""),
    "labels": lambda folder: flip(folder / "train.labels.npy"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("share", [0.4, 0.0], ids=["resident", "mapped"])
def test_damage_is_one_line_and_the_same_command_repairs_it(
    photos: Path,
    tmp_path: Path,
    small_shards: None,
    damage: str,
    share: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, folder = opened(photos), tmp_path / "pack"
    write(data, folder)
    DAMAGE[damage](folder)
    monkeypatch.setattr(_storage, "RESIDENT_SHARE", share)
    with pytest.raises(UserError, match=r"train[-.](00002|labels)\S*npy: .*(damaged|missing)") as caught:
        list(Packed(CPU, path=str(folder)).bank(8))
    assert "\n" not in str(caught.value)
    assert write(data, folder) == (0 if damage == "labels" else 7)
    assert_same(Packed(CPU, path=str(folder)), data)


def test_another_folder_is_left_alone(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write(opened(photos), folder)
    (photos / "train" / "cat" / "00.png").unlink()
    with pytest.raises(UserError, match=r"is a pack of other data \(images, labels differs\)"):
        write(opened(photos), folder)
    with pytest.raises(UserError, match="photos: is not empty, and no pack"):
        write(opened(photos), photos)
    with pytest.raises(UserError, match=r"has no pack\.json; `dino-lab pack` makes such a folder"):
        Packed(CPU, path=str(photos))
    manifest = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(UserError, match="is of another version of dino-lab"):
        Packed(CPU, path=str(folder))
    (folder / "pack.json").write_text("{")
    with pytest.raises(UserError, match=r"pack\.json: is damaged"):
        Packed(CPU, path=str(folder))


# ---- the command


def test_pack_as_a_command(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(photos), "--to", str(tmp_path / "pack"), "--set", "data.size=8"]) == 0
    out = capsys.readouterr().out
    assert "30 + 8 images of 8 x 8 pixels; 38 written now" in out
    assert f"data: {{name: packed, path: {tmp_path / 'pack'}}}" in out
    assert Packed(CPU, path=str(tmp_path / "pack")).class_names == ("cat", "dog")


def test_pack_of_a_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
    less = ["--set", "data.train_images=40", "--set", "data.test_images=10", "--set", "train.batch_size=20"]
    arguments = ["pack", str(spec), "--to", str(tmp_path / "pack"), *less]
    assert main(arguments) == 0
    assert "40 + 10 images" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "nothing was missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"^data\.size: field required; --set data\.size=256$"),
        (["data.size=0"], r"^data\.size: input should be greater than 0$"),
        (["data.size=8", "data.test=val"], r"^data\.test: .* has no folder 'val'"),
        (["data.size=8", "data.colour=1"], r"^data\.colour: extra inputs are not permitted$"),
        (["data.size=8", "train.epochs=3"], r"^--set train: a folder has data alone"),
        (["data.size"], "data.size"),
    ],
)
def test_pack_refuses_in_one_line(
    photos: Path, tmp_path: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["pack", str(photos), "--to", str(tmp_path / "pack"), *words]) == 2
    assert re.search(message, capsys.readouterr().err.strip())
    assert not (tmp_path / "pack").exists()


@pytest.mark.usefixtures("small_shards")
def test_a_killed_pack_goes_on(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pack"
    arguments = ["pack", str(photos), "--to", str(folder), "--set", "data.size=8"]
    code = (
        "import sys, time\n"
        "from dino_lab.cli import console\n"
        "from dino_lab.cli.app import main\n"
        "from dino_lab.components.data import _pack\n"
        f"_pack.SHARD_BYTES, _pack.BATCH = {_pack.SHARD_BYTES}, {_pack.BATCH}\n"
        "console.Progress.__call__ = lambda self, done, total: time.sleep(60 if done > 16 else 0.1)\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, *arguments]) as started:
        deadline = time.monotonic() + 60
        while not (folder / "train-00001.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        second = main(arguments)
        started.kill()
    assert second == 2
    assert capsys.readouterr().err.strip() == f"{folder}: another process is packing into it"
    first = (folder / "train-00000.npy").stat().st_mtime_ns
    assert main(arguments) == 0
    assert "38 written now" not in capsys.readouterr().out
    assert (folder / "train-00000.npy").stat().st_mtime_ns == first
    assert_same(Packed(CPU, path=str(folder)), ImageFolder(CPU, path=str(photos), size=8))
