"""Images to be found, and how a network describes them for copy detection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.evaluators import _picture
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import REPRESENTATIONS
from dino_lab.imaging.decode import pixels, read_rgb
from dino_lab.imaging.files import list_images

BATCH = 32


@dataclass(frozen=True)
class Set:
    """Images to be found: rows 0, 1, ..., of which some may be looked at, and their descriptions."""

    count: int
    describe: Callable[[Encoder], Tensor]  # [M, 2 D]
    show: Callable[[list[int]], dict[int, Image.Image]]
    side: int  # of a copy of one of them, in pixels


def of_split(data: Any, pixels: int | None) -> Set:
    """The test split; with `pixels` seen at that size, and not as all evaluators of a pass see it."""
    if data.channels != 3:
        raise UserError(
            f"evaluator copy_detection: copies are made of RGB images, these have {data.channels} channels"
        )

    def describe(encode: Encoder) -> Tensor:
        if pixels is None:
            split = encode.split(data, "test")
            return torch.cat((split["features"], split["gem_tokens"]), 1)
        return _describe(encode, (images for images, _ in data.test(BATCH)))

    def show(rows: list[int]) -> dict[int, Image.Image]:
        return _picture.of_split(data.test(BATCH), rows)

    return Set(data.test_images, describe, show, data.size)


def of_files(files: list[Path], side: int) -> Set:
    """Images of files, stretched to a square."""

    def show(rows: list[int]) -> dict[int, Image.Image]:
        return {row: read_rgb(files[row]) for row in rows}

    return Set(len(files), lambda encode: describe_images(encode, map(read_rgb, files), side), show, side)


def files_below(folder: str) -> list[Path]:
    """The images of a folder; a UserError where there is none."""
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UserError(f"evaluator copy_detection: {path}: there is no such folder")
    files = list_images(path).images
    if not files:
        raise UserError(f"evaluator copy_detection: {path}: holds no image")
    return files


def describe_images(encode: Encoder, images: Iterable[Image.Image], side: int) -> Tensor:
    """[N, 2 D] of images stretched to a square."""
    one_by_one = iter(images)
    some = iter(lambda: list(islice(one_by_one, BATCH)), [])  # until there are none
    return _describe(encode, (_squares(images, side) for images in some))


def _squares(images: Iterable[Image.Image], side: int) -> Tensor:
    squares = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
    return torch.stack([torch.from_numpy(pixels(square)) for square in squares])


def _describe(encode: Encoder, batches: Iterator[Tensor]) -> Tensor:
    """Features and the generalised mean of the tokens, [N, 2 D], of images uint8 [B, 3, H, W]."""
    found = []
    for images in batches:
        output = encode.outputs(images)
        pooled = REPRESENTATIONS["gem_tokens"](output)
        if pooled is None:
            raise UserError("evaluator copy_detection: the backbone gives no patch tokens")
        found.append(torch.cat((output.features, pooled), 1))
    described = torch.cat(found)
    if not described.isfinite().all():
        raise UserError("evaluator copy_detection: the features are not finite; the network has diverged")
    return described
