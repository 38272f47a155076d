"""`dino-lab attend` on real files, in a real run folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dino_lab.cli.app import main


def photograph(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tiny_spec: Callable[..., Any], execute: Callable[..., Any]) -> Path:
    """A finished run with two heads and 16 cells."""
    outcome = execute(tiny_spec("train.epochs=1", "evaluators=[]"))
    assert outcome.status == "finished"
    return Path(outcome.folder)


def attend(folder: Path, *arguments: object) -> int:
    return main(["attend", str(folder), *map(str, arguments)])


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_images_of_every_kind(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = photograph()
    sixteen = Image.fromarray(np.full((9, 9), 30000, np.uint16))
    kinds = {
        "rgb.jpg": photo,
        "palette.png": photo.convert("P"),
        "cmyk.tif": photo.convert("CMYK"),
        "grey.png": sixteen,
        "one.png": photo.crop((0, 0, 1, 1)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    assert attend(folder, *(tmp_path / name for name in kinds)) == 0
    assert capsys.readouterr().out == f"wrote 5 pictures to {folder / 'attention'}\n"
    assert written(folder / "attention") == sorted(f"{Path(name).stem}.png" for name in kinds)
    # The image and two heads, 256 pixels each, in two rows.
    assert size_of(folder / "attention" / "rgb.png") == (6 + 3 * 262, 6 + 2 * 278)


@pytest.mark.parametrize(("head", "columns"), [("mean", 2), ("2", 2), ("all", 3)])
def test_heads_are_chosen(folder: Path, tmp_path: Path, head: str, columns: int) -> None:
    photograph().save(tmp_path / "a.png")
    assert attend(folder, tmp_path / "a.png", "--to", tmp_path / "out", "--head", head, "--pixels", 32) == 0
    assert size_of(tmp_path / "out" / "a.png")[0] == 6 + columns * 262


def test_animations_are_read_frame_by_frame(folder: Path, tmp_path: Path) -> None:
    frames = [photograph(seed) for seed in range(5)]
    for name in ("a.gif", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    to = tmp_path / "out"
    assert attend(folder, tmp_path / "a.gif", tmp_path / "a.webp", "--to", to, "--every", 2) == 0
    assert written(to) == [f"{name}_{i:06}.png" for name in ("a-2", "a") for i in (0, 2, 4)]


def test_videos_are_read_frame_by_frame(folder: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(4):
            container.mux(stream.encode(av.VideoFrame.from_image(photograph(i, 48, 32))))
        container.mux(stream.encode())
    assert attend(folder, tmp_path / "v.mp4", "--to", tmp_path / "out") == 0
    assert written(tmp_path / "out") == [f"v_{i:06}.png" for i in range(4)]


def test_a_video_without_the_extra_is_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "v.mp4").write_bytes(b"video")
    monkeypatch.setitem(sys.modules, "av", None)
    assert attend(folder, tmp_path / "v.mp4", "--to", tmp_path / "out") == 2
    assert capsys.readouterr().err == (
        f"{tmp_path}/v.mp4: a video needs av, which is not installed: pip install 'dino-lab[video]'\n"
    )


def test_bad_files_are_a_line_each_and_the_others_are_drawn(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph().save(tmp_path / "good.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "half.png").write_bytes((tmp_path / "good.png").read_bytes()[:500])
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    (tmp_path / "folder").mkdir()
    names = ["text.png", "half.png", "float.tif", "none.png", "folder", "good.png"]
    assert attend(folder, *(tmp_path / name for name in names), "--to", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == f"wrote 1 picture to {tmp_path / 'out'}\n"
    lines = err.splitlines()
    words = ["neither an image nor a video", "truncated", "floating-point", "no such file", "is a folder"]
    assert len(lines) == 5
    for line, name, word in zip(lines, names, words, strict=False):
        assert line.startswith(f"{tmp_path / name}: ")
        assert word in line
    assert written(tmp_path / "out") == ["good.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--head", "first"), "--head first: should be all, mean or a number from 1 on"),
        (("--head", "3"), "--head 3: there is only head 1, head 2"),
        (("--pixels", "18"), "pixels = 18: the backbone, Vit, refuses them"),
    ],
)
def test_requests_that_cannot_be_met(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    photograph().save(tmp_path / "a.png")
    assert attend(folder, tmp_path / "a.png", "--to", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert attend(tmp_path / "nowhere", tmp_path / "a.png") == 2
    assert "nowhere: no run, and no file or folder of weights; a model" in capsys.readouterr().err
    (tmp_path / "nowhere").mkdir()
    assert attend(tmp_path / "nowhere", tmp_path / "a.png") == 2
    assert "no run lies here" in capsys.readouterr().err
