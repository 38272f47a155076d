"""The format of a pack: decoded images of one size in files that are mapped into memory, with checksums.

A folder holds `pack.json`; for each split `SPLIT.labels.npy`, int64 [N]; and for each shard of a split
`SPLIT-00000.npy`, uint8 [n, C, H, W], with `SPLIT-00000.crc.npy`, the CRC-32 of each image. Files get their
names when they are whole.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_lab.components.data._storage import Split
from dino_lab.errors import UserError
from dino_lab.imaging.decode import Pixels

SPLITS: tuple[Split, Split] = ("train", "test")
FORMAT = 1
MANIFEST = "pack.json"
AGAIN = "the same `dino-lab pack` again makes it anew"


@dataclass(frozen=True)
class Manifest:
    """What a pack holds."""

    size: int
    channels: int
    images: dict[str, int]  # by split
    shard_images: int  # but for the last shard of a split
    labels: dict[str, int]  # CRC-32 of each split's
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: dict[str, Any]  # the data of the spec that it was made from
    finished: bool
    labelled: bool = True
    found: tuple[str, ...] = ()  # what was passed over when it was packed, and other notes

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """None if there is none; a UserError if it cannot be read."""
        file = folder / MANIFEST
        if not file.exists():
            return None
        try:
            fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if fields.pop("format") != FORMAT:
                raise UserError(f"{file}: is of another version of dino-lab; pack into another folder")
            fields |= {key: tuple(fields[key]) for key in ("class_names", "mean", "std")}
            fields["found"] = tuple(fields.get("found", ()))
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{file}: is damaged ({error}); remove the folder and pack again") from error

    def write(self, folder: Path) -> None:
        """Replace what is there."""
        with replacing(folder / MANIFEST) as file:
            text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False)
            file.write_text(text + "\n", encoding="utf-8")

    def shards(self, split: Split) -> list[range]:
        """Which images of the split each shard holds."""
        total = self.images[split]
        return [
            range(first, min(first + self.shard_images, total))
            for first in range(0, total, self.shard_images)
        ]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name to write under; what was written there becomes `file`, once it is on the disk."""
    part = file.with_name(f".{os.getpid()}.{file.name}")
    try:
        yield part
        with part.open("rb+") as written:
            os.fsync(written.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def checksum(pixels: NDArray[Any]) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(np.ascontiguousarray(pixels).data)


class Shard:
    """One file of images."""

    def __init__(self, folder: Path, split: Split, number: int, manifest: Manifest) -> None:
        self.file = folder / f"{split}-{number:05}.npy"
        self.sums_file = self.file.with_suffix(".crc.npy")
        count = len(manifest.shards(split)[number])
        self.shape = (count, manifest.channels, manifest.size, manifest.size)

    def open(self) -> OpenShard:
        """Map it; a UserError if a file is missing or is not as long as it should be."""
        try:
            pixels, sums = np.load(self.file, mmap_mode="r"), np.load(self.sums_file)
        except FileNotFoundError as error:
            raise UserError(f"{error.filename}: is missing; {AGAIN}") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{self.file}: damaged ({error}); {AGAIN}") from None
        if pixels.shape != self.shape or pixels.dtype != np.uint8 or sums.shape != self.shape[:1]:
            raise UserError(f"{self.file}: damaged (holds {list(pixels.shape)} numbers); {AGAIN}")
        return OpenShard(self.file, pixels, sums)

    def is_whole(self) -> bool:
        """Whether every image has its checksum."""
        try:
            shard = self.open()
            for i in range(len(shard.sums)):
                shard.check(i, shard.pixels[i])
        except UserError:
            return False
        return True

    @contextmanager
    def writing(self) -> Iterator[Pixels]:
        """An array to fill, which becomes the file."""
        with replacing(self.file) as part:
            pixels = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=self.shape)
            yield pixels
            pixels.flush()
            with replacing(self.sums_file) as sums, sums.open("wb") as file:
                np.save(file, np.array([checksum(image) for image in pixels], np.uint32))


@dataclass
class OpenShard:
    """Images of a file, each checked when it is first read."""

    file: Path
    pixels: Pixels  # [n, C, H, W]
    sums: NDArray[np.uint32]  # [n]

    def __post_init__(self) -> None:
        self.checked = np.zeros(len(self.sums), bool)

    def copy(self, i: int, into: Pixels) -> None:
        """Image i; a UserError if it is not what was written."""
        into[...] = self.pixels[i]
        if not self.checked[i]:
            self.check(i, into)
            self.checked[i] = True

    def check(self, i: int, pixels: Pixels) -> None:
        """A UserError if these pixels are not those of image i."""
        if checksum(pixels) != self.sums[i]:
            raise UserError(f"{self.file}: damaged (image {i} does not have its checksum); {AGAIN}")
