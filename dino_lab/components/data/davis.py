"""Frames of videos with a mask of what moves, laid out as DAVIS has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from dino_lab.components.data._labelled import FileOptions, Size
from dino_lab.components.data._masked_files import FromMaskedFiles
from dino_lab.components.data._paths import named_folder
from dino_lab.components.data._storage import Split
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.decode import MASKS, read_image
from dino_lab.imaging.files import list_images, shown
from dino_lab.registry import Flat, register
from dino_lab.types import VOID

LISTS = ("ImageSets/2017", "ImageSets/2016", "ImageSets/480p")  # of 2017 and 2016


@register("data", "davis")
class Davis(FromMaskedFiles):
    """Frames of videos with masks of objects, in the layout of DAVIS 2016 and 2017.

    `path` holds `JPEGImages/<resolution>/<video>/`, `Annotations/<resolution>/<video>/` with masks of the
    same names, and lists of videos: `train` and `test` name them without their `.txt`; `train: null` reads no
    training split. No video is in both. There are no labels: all objects are of one class. In masks 0 is
    background and 1, 2, ... the objects; 255 alone, as in 2016, is one object. Frames without a mask can be
    trained on.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[str, Field(description="folder that holds JPEGImages, Annotations and ImageSets")],
        size: Size,
        resolution: Annotated[str, Field(description="folder of both, such as 480p")] = "480p",
        train: Annotated[
            str | None, Field(description="list of training videos, without `.txt`; null: only evaluated on")
        ] = "train",
        test: Annotated[str, Field(description="list of test videos, without `.txt`")] = "val",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        root = named_folder(path)
        named: dict[Split, str | None] = {"train": train, "test": test}
        videos = {key: _videos(root, name, key) for key, name in named.items() if name is not None}
        if both := sorted(set(videos.get("train", [])) & set(videos["test"])):
            raise UserError(f"{shown(root)}: video {both[0]} is in {train}.txt and in {test}.txt")
        sources = {key: _Frames(root, resolution, its) for key, its in videos.items()}
        self.labelled = False
        super().__init__(device, sources, ("object",), size=size, options=options)


class _Frames:
    """The frames of some videos, in the order of their names."""

    def __init__(self, root: Path, resolution: str, videos: list[str]) -> None:
        self.root = root / "JPEGImages" / resolution
        self.masks = root / "Annotations" / resolution
        self.names: list[str] = []
        for video in videos:
            folder = named_folder(str(self.root / video))
            frames = list_images(folder).images
            if not frames:
                raise UserError(f"{shown(folder)}: holds no frame")
            self.names += [frame.relative_to(self.root).as_posix() for frame in frames]
        self.labels = torch.zeros(len(self.names), dtype=torch.int64)

    def open(self, index: int) -> Image.Image:
        return read_image(self.root / self.names[index])

    def open_objects(self, index: int) -> Image.Image:
        mask = read_image((self.masks / self.names[index]).with_suffix(".png"))
        values = np.asarray(mask)
        if mask.mode in MASKS and set(np.unique(values)) <= {0, VOID}:  # 2016: one object, which is not void
            return Image.fromarray((values != 0).astype(np.uint8))
        return mask

    def open_classes(self, index: int) -> None:
        """None: all objects are of one class."""

    def where(self, index: int) -> str:
        return shown(self.root / self.names[index])

    def name(self, index: int) -> str:
        return self.names[index]


def _videos(root: Path, name: str, key: str) -> list[str]:
    """The videos of a list: names, or in 2016 the paths of frames and masks."""
    files = [root / folder / f"{name}.txt" for folder in LISTS]
    file = next((its for its in files if its.is_file()), None)
    if file is None:
        there = sorted({path.stem for its in files for path in its.parent.glob("*.txt")})
        raise Misfit(
            ("data", key),
            f"{shown(files[0])} does not exist; there is: {printable(', '.join(there) or 'no list', 300)}",
        )
    lines = file.read_text(encoding="utf-8").split("\n")
    firsts = [line.split()[0] for line in lines if line.strip()]
    videos = list(dict.fromkeys(Path(first).parent.name or first for first in firsts))
    if not videos:
        raise UserError(f"{shown(file)}: names no video")
    return videos
