"""Write a data set as tar files that `data: {name: shards}` and WebDataset read, image files as they are."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._pack import LOCK, locked
from dino_lab.components.data._pack_format import SPLITS, replacing
from dino_lab.components.data._shard_files import BadShard
from dino_lab.components.data._shard_index import Wanted, read_arrays
from dino_lab.components.data._shard_reader import ShardStorage
from dino_lab.components.data._shard_samples import IMAGES
from dino_lab.components.data._shard_set import make_index
from dino_lab.components.data._storage import Split, Streamed
from dino_lab.errors import UserError, printable
from dino_lab.imaging.decode import BadImage
from dino_lab.imaging.files import INDEX_SUFFIX, shown

SHARD_IMAGES = 1000
FORMATS = {"JPEG": "jpg", "MPO": "jpg", "JPEG2000": "jp2", "TIFF": "tif"}  # others are called as their format


class _Plan(NamedTuple):
    """One shard: where it is written, and the positions int64 [n] of its images in the split."""

    split: Split
    file: Path
    positions: Tensor


def write_shards(
    data: Labelled, folder: Path, cache: Path, progress: Callable[[int, int], None]
) -> tuple[dict[Split, int], int]:
    """Write what is missing in `folder`; shards by split, and how many images were written now.

    Training images are mixed, always in the same way. `progress` is told how many images of those that were
    missing are done. A UserError if the folder holds something else.
    """
    plans = [plan for split in SPLITS for plan in _plans(data, split, folder)]
    if folder.is_dir():
        _check_folder(folder, plans)
    with locked(folder):
        missing = [plan for plan in plans if not _is_there(data, plan, cache)]
        total, done = sum(len(plan.positions) for plan in missing), 0
        for plan in missing:
            with replacing(plan.file) as part, tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as tar:
                for members in _samples(data, plan):
                    for name, content in members.items():
                        info = tarfile.TarInfo(name)  # without date or owner: the same data, the same bytes
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
                    done += 1
                    progress(done, total)
            for label in {None, _label(data)}:
                make_index(str(plan.file), Wanted(None, label), cache)
    return {split: sum(plan.split == split for plan in plans) for split in SPLITS}, total


def _label(data: Labelled) -> str | None:
    return "cls" if data.labelled else None


def _plans(data: Labelled, split: Split, folder: Path) -> Iterator[_Plan]:
    images = data.train_images if split == "train" else data.test_images
    order = torch.arange(images)
    if split == "train":
        order = torch.randperm(images, generator=torch.Generator().manual_seed(0))
    for number, positions in enumerate(order.split(SHARD_IMAGES) if images else ()):
        yield _Plan(split, folder / f"{split}-{number:05}.tar", positions)


def _check_folder(folder: Path, plans: list[_Plan]) -> None:
    ours = {plan.file.name for plan in plans}
    for file in sorted(folder.iterdir()):
        name = file.name
        if name not in ours and name != LOCK and not name.endswith(INDEX_SUFFIX) and name[:1] != ".":
            raise UserError(f"{shown(file)}: is no shard of these data; write into another folder")


def _is_there(data: Labelled, plan: _Plan, cache: Path) -> bool:
    """Whether a shard is written; a UserError where it has other labels."""
    if not plan.file.exists():
        return False
    try:
        header, arrays = read_arrays(make_index(str(plan.file), Wanted(None, _label(data)), cache).index_file)
    except BadShard:
        return False
    expected = data.labels(plan.split)[plan.positions].numpy()
    found = np.array([int(label) for label in header.labels] or [0], np.int64)[arrays.labels]
    if not np.array_equal(found, expected if data.labelled else np.zeros(len(plan.positions))):
        raise UserError(f"{shown(plan.file)}: is a shard of other data; write into another folder")
    return True


def _samples(data: Labelled, plan: _Plan) -> Iterator[dict[str, bytes]]:
    """Members of each sample by name: the image, and its class as a number and as the name that it has."""
    numbered = data.class_names == tuple(map(str, range(data.classes)))
    for position, (extension, content), label in zip(
        plan.positions.tolist(),
        _files(data, plan),
        data.labels(plan.split)[plan.positions].tolist(),
        strict=True,
    ):
        stem = f"{position:09}"
        members = {f"{stem}.{extension}": content}
        if data.labelled:
            members[f"{stem}.cls"] = b"%d" % label
            if not numbered:
                members[f"{stem}.txt"] = data.class_names[label].encode()
        yield members


def _files(data: Labelled, plan: _Plan) -> Iterator[tuple[str, bytes]]:
    """Extension and content of each image: its file, or its pixels as PNG where it has none."""
    storage = data.storage(plan.split)
    if not isinstance(storage, (Streamed, ShardStorage)):
        for images, _ in data.read(plan.split, plan.positions.split(1)):
            yield _as_png(Image.fromarray(images[0].permute(1, 2, 0).numpy()))  # [H, W, 3]
        return
    for row in storage.rows[plan.positions].tolist():
        try:
            image = storage.source.open(row)
        except (BadImage, BadShard, OSError) as error:
            raise UserError(
                f"{storage.source.where(row)}: unreadable image ({printable(str(error), 200)}); repair or "
                "remove it, or set data.on_bad_image: skip"
            ) from error
        kind, file = image.format or "", getattr(image, "fp", None)
        extension = FORMATS.get(kind, kind.lower())
        if isinstance(file, io.BytesIO) and extension in IMAGES:
            yield extension, file.getvalue()
        else:
            yield _as_png(image)


def _as_png(image: Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "png", buffer.getvalue()
