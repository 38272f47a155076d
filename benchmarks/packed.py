"""Images a second that a run is given: JPEG files decoded in workers, against the same files packed."""

from __future__ import annotations

import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from PIL import Image

from benchmarks.augment import pictures
from benchmarks.report import section, spread, table
from dino_lab.components.data._labelled import Labelled
from dino_lab.components.data._pack import pack
from dino_lab.components.data._storage import never_resident
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.packed import Packed

ROUNDS = 5
BATCH = 64
IMAGES = 12 * BATCH
FILES = (400, 500)  # height and width, as ImageNet's are on average
SIZE = 256


def write_photographs(folder: Path, images: int = IMAGES) -> None:
    """JPEG files in `folder`/train/one, and one in `folder`/test/one."""
    drawn = pictures(BATCH, max(FILES))
    for split, count in (("train", images), ("test", 1)):
        (folder / split / "one").mkdir(parents=True)
        for i in range(count):
            pixels = drawn[i % BATCH, :, : FILES[0]].permute(1, 2, 0).contiguous().numpy()
            Image.fromarray(pixels).save(folder / split / "one" / f"{i:04}.jpg", quality=90)


def _rate(data: Labelled) -> float:
    """Images a second once the first batch is there."""
    batches = data.train(BATCH, 0, 0)
    next(batches)
    began = time.perf_counter()
    count = sum(len(images) for images, _ in islice(batches, IMAGES // BATCH - 1))
    return count / (time.perf_counter() - began)


def main() -> str:
    """Interleaved rounds; neither holds the decoded images in memory."""
    with tempfile.TemporaryDirectory() as place, never_resident():
        write_photographs(Path(place, "files"))
        files = ImageFolder(torch.device("cpu"), path=f"{place}/files", size=SIZE)
        began = time.perf_counter()
        pack(files, {}, Path(place, "pack"), lambda done, total: None)
        packing = (IMAGES + 1) / (time.perf_counter() - began)
        rates: dict[str, list[float]] = {"decoded": [], "packed": []}
        for _ in range(ROUNDS):
            rates["decoded"].append(_rate(files))
            rates["packed"].append(_rate(Packed(torch.device("cpu"), path=f"{place}/pack")))
        sizes = {name: _megabytes(Path(place, folder)) for name, folder in _FOLDERS.items()}
    ratios = [b / a for a, b in zip(rates["decoded"], rates["packed"], strict=True)]
    rows = [[name, spread(rates[name], 0), f"{1000 * sizes[name] / IMAGES:.0f}"] for name in rates]
    text = table(["training images", "images/s, median (range)", "kB an image"], rows)
    text += (
        f"\n\nPacked over decoded, in pairs: {spread(ratios, 1)}; packing itself: {packing:.0f} images/s. "
    )
    text += "The packed files are in the page cache; a disk gives its bandwidth over the size of an image."
    title = f"Data: JPEG files of {FILES[1]} x {FILES[0]}, at {SIZE} pixels"
    return section(title, "python -m benchmarks.packed", text)


_FOLDERS = {"decoded": "files", "packed": "pack"}


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*.*")) / 1e6


if __name__ == "__main__":
    print(main())
