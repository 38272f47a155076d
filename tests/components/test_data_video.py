"""Frames of videos, of files that are written here."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_lab.components.data.video import Video
from dino_lab.errors import UserError
from dino_lab.imaging.video import NoVideo, duration, frame_at, frames

av = pytest.importorskip("av")
CPU = torch.device("cpu")
RATE, STEP = 10, 5  # frames of a second; from one frame's grey value to the next one's


def _write(file: Path, images: list[np.ndarray]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 10_000_000
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file


def _greys(count: int) -> list[np.ndarray]:
    """Frame i is grey of value 5 i."""
    return [np.full((48, 64, 3), STEP * i, np.uint8) for i in range(count)]


def _number(pixels: object) -> int:
    return round(float(np.asarray(pixels).mean()) / STEP)


def test_a_frame_is_the_one_that_is_seen_at_a_time(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.mp4", _greys(45))
    assert duration(file) == pytest.approx(4.5)
    assert [_number(image) for image in frames(file)] == list(range(45))
    seen = {seconds: _number(frame_at(file, seconds)) for seconds in (0, 0.09, 0.1, 1.05, 2.3, 4.4, 9)}
    assert seen == {0: 0, 0.09: 0, 0.1: 1, 1.05: 10, 2.3: 23, 4.4: 44, 9: 44}


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    left_is_white = np.zeros((48, 64, 3), np.uint8)
    left_is_white[:, :32] = 255
    file = _write(tmp_path / "a.mp4", [left_is_white] * 3)
    content = bytearray(file.read_bytes())
    # The matrix of ISO/IEC 14496-12, 8.3.2 (track header): a quarter turn clockwise, as telephones write it.
    turn = (0, 0x10000, 0, 0xFFFF0000, 0, 0, 0, 0, 0x40000000)
    at = content.index(b"tkhd") + 4 + 40
    content[at : at + 36] = b"".join(number.to_bytes(4, "big") for number in turn)
    file.write_bytes(bytes(content))
    upright = np.asarray(frame_at(file, 0.1))
    assert upright.shape == (64, 48, 3)
    assert upright[:28].mean() > 240  # what was left is now above
    assert upright[36:].mean() < 15


def test_videos_are_tested_as_a_whole(tmp_path: Path) -> None:
    for i in range(12):
        _write(tmp_path / ("walk" if i % 2 else "run") / f"{i}.mp4", _greys(25))
    (tmp_path / "walk" / "notes.txt").write_text("x")
    data = Video(CPU, path=str(tmp_path), size=16, every=0.5, test_fraction=0.3)
    assert data.class_names == ("run", "walk")
    assert data.train_images + data.test_images == 12 * 5
    assert data.train_images % 5 == data.test_images % 5 == 0
    images, labels = next(iter(data.bank(5)))  # the frames of one video, in order
    assert [_number(image) for image in images] == [0, 5, 10, 15, 20]
    assert len(labels.unique()) == 1
    report = data.found()
    assert [(str(its.reason), its.count) for its in report.passed_over] == [("no video (.txt)", 1)]
    assert report.notes[0] == "frames of 12 videos, one in 0.5 s"


def test_without_classes(tmp_path: Path) -> None:
    for i in range(3):
        _write(tmp_path / f"{i}.mp4", _greys(12))
    data = Video(CPU, path=str(tmp_path), size=16)
    assert not data.labelled
    assert (data.train_images, data.test_images) in {(2, 4), (4, 2)}  # each of 1.2 s has two frames


def test_an_unreadable_video_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    for i in range(2):
        _write(tmp_path / f"{i}.mp4", _greys(12))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match=r"broken.mp4: unreadable video .*on_bad_image: skip"):
        Video(CPU, path=str(tmp_path), size=16)
    data = Video(CPU, path=str(tmp_path), size=16, options=_skipping())
    assert [(its.reason, its.count) for its in data.found().passed_over] == [("unreadable video", 1)]


def _skipping() -> object:
    from dino_lab.components.data._labelled import FileOptions

    return FileOptions(on_bad_image="skip")


def test_what_holds_no_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no video"):
        Video(CPU, path=str(tmp_path), size=16)
    whole = _write(tmp_path / "a.mp4", _greys(30)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NoVideo):
        frame_at(tmp_path / "cut.mp4", 1)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "a.mp4", _greys(2))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'dino-lab\[video\]'"):
        Video(CPU, path=str(tmp_path), size=16)
