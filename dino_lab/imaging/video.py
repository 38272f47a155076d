"""Frames of video files, through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from dino_lab.extras import want

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"}


class NoVideo(Exception):
    """A file that is no video, or not a whole one."""


def frames(file: Path) -> Iterator[Image.Image]:
    """Every frame, upright; a NoVideo says why there is none."""
    with _opened(file) as (container, _):
        for frame in container.decode(video=0):
            yield _upright(frame)


def frame_at(file: Path, seconds: float) -> Image.Image:
    """The frame that is seen at a time, counted from the first one; the last frame after its end."""
    with _opened(file) as (container, stream):
        start = stream.start_time or 0
        wanted = start + math.floor(float(seconds / stream.time_base) + 1e-3)
        container.seek(wanted, stream=stream)
        seen = None
        for frame in container.decode(stream):
            if seen is not None and frame.pts is not None and frame.pts > wanted:
                break
            seen = frame
        if seen is None:
            raise NoVideo(f"there is no frame at {seconds:g} s")
        return _upright(seen)


def duration(file: Path) -> float:
    """Seconds from the first frame to the end of the last, as the file states it or by reading all of it."""
    with _opened(file) as (container, stream):
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return float(container.duration / 1_000_000)  # FFmpeg counts a file's time in microseconds
        times = [
            packet.pts + (packet.duration or 0)
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        if not times:
            raise NoVideo("it holds no frame")
        return float((max(times) - (stream.start_time or 0)) * stream.time_base)


@contextmanager
def _opened(file: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its first stream of pictures; a NoVideo for whatever FFmpeg says of the file."""
    av = want("av", "video", "a video")
    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise NoVideo("it holds no pictures")
            yield container, container.streams.video[0]
    except (av.error.FFmpegError, EOFError, MemoryError) as error:
        raise NoVideo(" ".join(str(getattr(error, "strerror", None) or error).split())) from error


def _upright(frame: Any) -> Image.Image:
    """A frame as a player shows it: telephones write their pictures turned, and say by how much."""
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
