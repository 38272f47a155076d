"""Frames of videos."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._image_splits import tested_names
from dino_lab.components.data._labelled import UNLABELLED, FileOptions, FromFiles, Size
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import OnBadImage
from dino_lab.errors import UserError, printable
from dino_lab.imaging.decode import BadImage
from dino_lab.imaging.files import HIDDEN, Listing, shown
from dino_lab.imaging.report import passed_over
from dino_lab.imaging.video import SUFFIXES, NoVideo, duration, frame_at
from dino_lab.registry import Flat, register


@register("data", "video")
class Video(FromFiles):
    """Frames of the video files below a folder, one every `every` seconds.

    Labels are the folders below `path`, or there are none. A video is trained on or tested as a whole, by a
    hash of its path below `path`. Frames are turned upright as the file says. Needs `dino-lab[video]`.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder of the videos, or of folders that are classes")],
        size: Size,
        every: Annotated[
            float, Field(gt=0, description="seconds from one frame that is used to the next")
        ] = 1.0,
        labels: Annotated[
            Literal["folders", "none"], Field(description="classes are folders, or frames have none")
        ] = "folders",
        test_fraction: Annotated[
            float, Field(gt=0, lt=1, description="share of the videos that is the test split")
        ] = 0.1,
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = named_folder(path)
        rest = Listing()
        videos = _videos(root, rest)
        classes = [] if labels == "none" else sorted({_folder(root, video) for video in videos} - {""})
        self.labelled = bool(classes)
        if classes:
            loose = [video for video in videos if video.parent == root]
            for video in loose:
                rest.skip("video in no folder of a class", video)
                videos.remove(video)
        lengths = _lengths(videos, rest, options.on_bad_image)
        label = {name: i for i, name in enumerate(classes)}
        splits = [
            _Frames(
                root, [(video, lengths[video], label.get(_folder(root, video), 0)) for video in its], every
            )
            for its in _divided(list(lengths), root, test_fraction)
        ]
        self.passed_over = passed_over(root, rest.passed_over)
        self.notes = (f"frames of {len(lengths)} videos, one in {every:g} s",)
        names = tuple(printable(name, 100) for name in classes) or (UNLABELLED,)
        super().__init__(device, splits[0], splits[1], names, size=size, **options.model_dump())


class _Frames:
    """Frames by number: of which video, and at which second."""

    def __init__(self, root: Path, videos: list[tuple[Path, float, int]], every: float) -> None:
        self._root, self._every = root, every
        self._videos = [video for video, _, _ in videos]
        counts = torch.tensor([max(1, math.ceil(seconds / every)) for _, seconds, _ in videos])
        self._ends = counts.cumsum(0)
        self.labels = torch.tensor([label for _, _, label in videos]).repeat_interleave(counts)

    def open(self, index: int) -> Image.Image:
        video, seconds = self._place(index)
        try:
            return frame_at(video, seconds)
        except NoVideo as error:
            raise BadImage(f"{error}") from error

    def where(self, index: int) -> str:
        video, seconds = self._place(index)
        return f"{shown(video)}, at {seconds:g} s"

    def name(self, index: int) -> str:
        video, seconds = self._place(index)
        return f"{video.relative_to(self._root).as_posix()}, {seconds:g} s"

    def _place(self, index: int) -> tuple[Path, float]:
        which = int(torch.searchsorted(self._ends, index, right=True))
        before = int(self._ends[which - 1]) if which else 0
        return self._videos[which], (index - before) * self._every


def _folder(root: Path, file: Path) -> str:
    """The name of the folder directly below `root` that a file lies in, or an empty text."""
    return file.relative_to(root).parts[0] if file.parent != root else ""


def _videos(root: Path, rest: Listing) -> list[Path]:
    """The videos below a folder, by their names, in the order of their paths."""
    found = []
    for folder, folders, files in os.walk(root):
        hidden = [name for name in (*folders, *files) if name.startswith(".")]
        for name in hidden:
            rest.skip(HIDDEN, Path(folder, name))
        folders[:] = [name for name in folders if name not in hidden]
        for name in sorted(set(files) - set(hidden)):
            file = Path(folder, name)
            if file.suffix.lower() in SUFFIXES:
                found.append(file)
            else:
                rest.skip(f"no video ({file.suffix.lower() or 'no suffix'})", file)
    if not found:
        raise UserError(f"{shown(root)}: holds no video ({', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def _lengths(videos: list[Path], rest: Listing, on_bad_image: OnBadImage) -> dict[Path, float]:
    """Seconds of each video that can be read; a UserError names the first that cannot."""
    lengths = {}
    for video in videos:
        try:
            lengths[video] = duration(video)
        except NoVideo as error:
            if on_bad_image == "error":
                hint = "repair or remove it, or set data.on_bad_image: skip"
                raise UserError(f"{shown(video)}: unreadable video ({error}); {hint}") from error
            rest.skip("unreadable video", video)
    return lengths


def _divided(videos: list[Path], root: Path, test_fraction: float) -> tuple[list[Path], list[Path]]:
    """Videos to train on and to test on, each at least one; a UserError where there is only one in all."""
    if len(videos) < 2:
        raise UserError(
            f"{shown(root)}: {len(videos)} readable video; it takes one to train on and one to test on"
        )
    names = {video: video.relative_to(root).as_posix() for video in videos}
    tested = tested_names(names.values(), test_fraction)
    return [v for v in videos if names[v] not in tested], [v for v in videos if names[v] in tested]
