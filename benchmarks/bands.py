"""SimCLR on drawn images whose classes differ in the fourth band alone, in several kinds of file."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.report import section, table
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.training.build import build
from dino_lab.training.loop import train

TRAIN, TEST, CLASSES = 1200, 300, 4
H, W, TOP = 40, 48, 4095
EPOCHS = 12
SPEC = Path(__file__).parents[1] / "experiments" / "photographs.yaml"
SETTINGS = (
    "augment={name: two_view, size: 32, scale: [0.3, 1], saturation: 0, hue: 0, grey_probability: 0, "
    "blur_probability: [0, 0], solarize_probability: [0, 0]}",
    "backbone={name: resnet, width: 16, blocks: [1, 1, 1, 1], stem_stride: 1}",
    f"train.epochs={EPOCHS}",
    "train.batch_size=64",
    "evaluators=[{name: knn, k: [20], temperature: 0.07}]",
)


def drawn(label: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
    """Values of 12 bits, uint16 [4, H, W]: noise in three bands, in the fourth stripes, rings or squares."""
    y, x = np.mgrid[:H, :W]
    phase, (row, column) = random.uniform(0, 2 * np.pi, 2), random.uniform((10, 12), (30, 36))
    bands = np.empty((4, H, W))
    bands[:3] = np.kron(random.normal(0, 0.7, (3, H // 4, W // 4)), np.ones((4, 4)))
    bands[3] = [
        np.sin(2 * np.pi * x / 8 + phase[0]),
        np.sin(2 * np.pi * y / 8 + phase[0]),
        np.cos(2 * np.pi * np.hypot(y - row, x - column) / 8),
        np.sign(np.sin(2 * np.pi * x / 12 + phase[0]) * np.sin(2 * np.pi * y / 12 + phase[1])),
    ][label]
    bands += random.normal(0, 0.3, bands.shape)
    return (2000 + 600 * bands).clip(0, TOP).astype(np.uint16)


def _array(values: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _tiff(values: np.ndarray[Any, Any]) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values.transpose(1, 2, 0), photometric="minisblack", planarconfig="contig")
    return buffer.getvalue()


def _png(values: np.ndarray[Any, Any]) -> bytes:
    """The fourth band alone."""
    buffer = io.BytesIO()
    Image.fromarray(values[3]).save(buffer, "PNG")
    return buffer.getvalue()


# Suffix, what writes a file, and the bands that are read of it.
KINDS: dict[str, tuple[str, Callable[[np.ndarray[Any, Any]], bytes], list[int]]] = {
    "four bands of 12 in 16 bits, NumPy": (".npy", _array, [1, 2, 3, 4]),
    "the same without the fourth": (".npy", _array, [1, 2, 3]),
    "one channel of 12 bits, PNG": (".png", _png, [1]),
}
if find_spec("tifffile") is not None:
    KINDS["four bands of 12 in 16 bits, TIFF"] = (".tif", _tiff, [1, 2, 3, 4])


def write(folder: Path, suffix: str, encode: Callable[[np.ndarray[Any, Any]], bytes]) -> None:
    """Class folders of both splits."""
    random = np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        for i in range(count):
            file = folder / split / f"{i % CLASSES}" / f"{i:04}{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(drawn(i % CLASSES, random)))


def scores(folder: Path, bands: list[int]) -> tuple[float, float]:
    """20-NN accuracy before and after training."""
    n = len(bands)
    data = f"{{name: image_folder, path: {folder}, size: 32, channels: {bands}, range: [0, {TOP}], "
    data += f"mean: {[0.49] * n}, std: {[0.12] * n}}}"
    run = build(load(SPEC, [f"data={data}", *SETTINGS]).spec, registry, torch.device("cpu"))
    before = run.evaluate(list(run.evaluators.items()))
    for _ in train(run):
        pass
    after = run.evaluate(list(run.evaluators.items()))
    return _knn(before), _knn(after)


def _knn(scored: Any) -> float:
    return float(scored[0].scores["20nn"])


def main() -> str:
    """One seed of each kind."""
    rows = []
    for name, (suffix, encode, bands) in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), suffix, encode)
            rows.append([name, *(f"{score:.3f}" for score in scores(Path(place), bands))])
    text = (
        f"{TRAIN} training and {TEST} test images of {CLASSES} classes that differ in the fourth band alone; "
    )
    text += f"SimCLR, a ResNet of 16 channels, {EPOCHS} epochs, seed 0. Chance is 0.25.\n\n"
    text += table(["files", "20-NN untrained", "20-NN trained"], rows)
    return section("Data: bands and depths", "python -m benchmarks.bands", text)


if __name__ == "__main__":
    print(main())
