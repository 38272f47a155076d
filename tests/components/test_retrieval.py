"""Retrieval against plain loops: among classes, and by the rules of the revisited Oxford benchmark."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.evaluators.retrieval import Benchmark, Retrieval
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions


class Colour(nn.Module):
    """The mean of each channel."""

    dim = 3

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def encoder(backbone: nn.Module | None = None, size: int = 16) -> Encoder:
    network = Network(backbone or Colour(), nn.Identity(), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Encoder(network.eval(), size, nullcontext)


class Plain:
    """Images of one colour in noisy classes."""

    def __init__(self, train: int = 90, test: int = 40, classes: int = 5) -> None:
        generator = torch.Generator().manual_seed(0)
        centres = torch.randint(60, 196, (classes, 3), generator=generator)
        self.classes = classes
        self._bank, self._test = (self._draw(count, centres, generator) for count in (train, test))

    def _draw(self, count: int, centres: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        labels = torch.randint(len(centres), (count,), generator=generator)
        colours = centres[labels] + torch.randint(-50, 51, (count, 3), generator=generator)
        return colours.to(torch.uint8)[:, :, None, None].expand(-1, -1, 16, 16), labels

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(32) for part in self._bank), strict=True)

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*(part.split(16) for part in self._test), strict=True)

    def vectors(self, split: str) -> tuple[list[list[float]], list[int]]:
        images, labels = getattr(self, f"_{split}")
        return (images[:, :, 0, 0].double() / 127.5 - 1).tolist(), labels.tolist()


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.mark.parametrize("database", ["train", "test"])
def test_scores_among_classes_are_those_of_a_loop(database: Any) -> None:
    data = Plain()
    found = Retrieval(k=(1, 7), database=database).forward(encoder(), data)
    queries, labels = data.vectors("test")
    images, classes = data.vectors("bank" if database == "train" else "test")
    averages, precisions = [], []
    for i, (query, label) in enumerate(zip(queries, labels, strict=True)):
        rows = [j for j in range(len(images)) if database == "train" or j != i]
        scores = [cosine(query, images[j]) for j in rows]
        right = [classes[j] == label for j in rows]
        averages.append(average_precision_score(right, scores))
        first = sorted(range(len(rows)), key=lambda j: -scores[j])[:7]
        precisions.append(sum(right[j] for j in first) / 7)
    assert list(found) == ["mAP", "mP_at_1", "mP_at_7"]
    assert found["mAP"] == pytest.approx(np.mean(averages), rel=1e-6)
    assert found["mP_at_7"] == pytest.approx(np.mean(precisions), rel=1e-6)
    assert 0.2 < found["mAP"] < 1


def test_a_test_image_that_is_alone_in_its_class_is_left_out() -> None:
    data = Plain(test=12)
    labels = data._test[1]
    labels[:] = torch.tensor([0] * 6 + [1] * 5 + [2])
    with_it = Retrieval(k=(1,), database="test").forward(encoder(), data)
    labels[-1] = 3  # as alone as before
    assert Retrieval(k=(1,), database="test").forward(encoder(), data) == with_it
    labels[:] = torch.arange(12)
    with pytest.raises(UserError, match="no test image has another image of its class"):
        Retrieval(k=(1,), database="test").forward(encoder(), data)


@pytest.mark.parametrize(("database", "most"), [("train", 90), ("test", 39)])
def test_more_places_than_images_are_refused(database: Any, most: int) -> None:
    Retrieval(k=(most,), database=database).forward(encoder(), Plain())
    with pytest.raises(UserError, match=f"k = {most + 1} is more than the {most} images of the database"):
        Retrieval(k=(most + 1,), database=database).forward(encoder(), Plain())


@pytest.mark.parametrize("database", ["train", "test"])
def test_the_picture_marks_right_and_wrong(database: Any) -> None:
    files = Retrieval(database=database).files(encoder(), Plain())
    picture = np.asarray(Image.open(io.BytesIO(files["results.png"])))
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert {(27, 140, 62), (200, 40, 40)} <= colours


def test_parameters_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="k names a number twice"):
        Retrieval(k=(5, 5))
    with pytest.raises(ValueError, match="a benchmark has its own images"):
        Retrieval(database="test", benchmark=Benchmark(path="x"))


# ---- the benchmark

IMAGES, QUERIES = 30, 6


@pytest.fixture
def layout(tmp_path: Path) -> dict[str, Any]:
    """Images of one colour and random shape; a query lies in the middle of another colour. Query 5 is easy."""
    random = np.random.default_rng(0)
    (tmp_path / "jpg").mkdir()
    truth: dict[str, Any] = {"imlist": [], "qimlist": [], "gnd": []}
    for i in range(IMAGES):
        size = tuple(random.integers(20, 60, 2).tolist())
        colour = tuple(random.integers(0, 256, 3).tolist())
        Image.new("RGB", size, colour).save(tmp_path / f"jpg/place_{i:03}.jpg", quality=100)
        truth["imlist"].append(f"place_{i:03}")
    for i in range(QUERIES):
        image = Image.new("RGB", (50, 40), tuple(random.integers(0, 256, 3).tolist()))
        image.paste(tuple(random.integers(0, 256, 3).tolist()), (8, 8, 40, 32))
        image.save(tmp_path / f"jpg/query_{i}.jpg", quality=100)
        some = random.permutation(IMAGES)[:12]
        parts = (some[:4], some[4:8], some[8:]) if i != 5 else (some[:4], some[:0], some[8:])
        truth["qimlist"].append(f"query_{i}")
        truth["gnd"].append(
            {"bbx": [16.0, 16.0, 32.0, 24.0], **dict(zip(("easy", "hard", "junk"), parts, strict=True))}
        )
    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps(truth))
    return truth


def colour_of(file: Path, crop: bool) -> list[float]:
    pixels = np.asarray(Image.open(file)).astype(float) / 127.5 - 1
    return list((pixels[16:24, 16:32] if crop else pixels).mean((0, 1)))


def naive(folder: Path, truth: dict[str, Any], difficulty: str, k: int, crop: bool) -> tuple[float, float]:
    """The rules of the benchmark, one query and one rank at a time."""
    right_of = {"easy": ["easy"], "medium": ["easy", "hard"], "hard": ["hard"]}[difficulty]
    junk_of = {"easy": ["junk", "hard"], "medium": ["junk"], "hard": ["junk", "easy"]}[difficulty]
    images = [colour_of(folder / f"jpg/{name}.jpg", False) for name in truth["imlist"]]
    averages, precisions = [], []
    for name, query in zip(truth["qimlist"], truth["gnd"], strict=True):
        right = {int(j) for part in right_of for j in query[part]}
        junk = {int(j) for part in junk_of for j in query[part]}
        if not right:
            continue
        scores = [cosine(colour_of(folder / f"jpg/{name}.jpg", crop), image) for image in images]
        order = [j for j in sorted(range(len(images)), key=lambda j: -scores[j]) if j not in junk]
        area, hits, last = 0.0, 0, 0
        for rank, j in enumerate(order):
            if j in right:
                before = hits / rank if rank else 1.0
                hits += 1
                area += (before + hits / (rank + 1)) / 2 / len(right)
                last = rank + 1
        averages.append(area)
        at = min(last, k)
        precisions.append(sum(j in right for j in order[:at]) / at)
    return float(np.mean(averages)), float(np.mean(precisions))


@pytest.mark.parametrize("crop", [True, False])
def test_the_benchmark_is_that_of_a_loop(crop: bool, layout: dict[str, Any], tmp_path: Path) -> None:
    benchmark = Benchmark(path=str(tmp_path), pixels=100, crop_queries=crop)
    found = Retrieval(k=(1, 5, 30), benchmark=benchmark).forward(encoder(), Plain())
    assert len(found) == 12
    for difficulty in ("easy", "medium", "hard"):
        for k in (1, 5, 30):
            average, precision = naive(tmp_path, layout, difficulty, k, crop)
            assert found[f"{difficulty}.mAP"] == pytest.approx(average, rel=1e-6)
            assert found[f"{difficulty}.mP_at_{k}"] == pytest.approx(precision, rel=1e-6)
    assert len({round(found[f"{name}.mAP"], 6) for name in ("easy", "medium", "hard")}) == 3


def test_json_says_the_same(layout: dict[str, Any], tmp_path: Path) -> None:
    retrieval = Retrieval(benchmark=Benchmark(path=str(tmp_path)))
    expected = retrieval.forward(encoder(), Plain())
    (tmp_path / "gnd_toy.pkl").unlink()
    (tmp_path / "gnd_toy.json").write_text(json.dumps(layout, default=lambda array: array.tolist()))
    assert retrieval.forward(encoder(), Plain()) == expected


class Sees(Colour):
    """It remembers the sizes that it saw, and refuses what is not in patches of 8."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def check_size(self, size: int) -> None:
        if size % 8:
            raise ValueError(f"{size} is not a multiple of patch 8")

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append((images.shape[-1], images.shape[-2]))
        return super().forward(images)


def test_images_are_shrunk_scaled_and_cut_to_whole_patches(layout: dict[str, Any], tmp_path: Path) -> None:
    backbone = Sees()
    benchmark = Benchmark(path=str(tmp_path), pixels=40, scales=(1, 0.5), crop_queries=False)
    Retrieval(benchmark=benchmark).forward(encoder(backbone), Plain())
    assert backbone.sizes[:2] == [(40, 32), (16, 16)]  # 50 x 40, shrunk to 40 x 32; half of it is 20 x 16
    assert len(backbone.sizes) == 2 * (IMAGES + QUERIES)
    assert all(width % 8 == height % 8 == 0 < min(width, height) for width, height in backbone.sizes)


def test_a_vision_transformer_sees_any_shape(layout: dict[str, Any], tmp_path: Path) -> None:
    vit = Vit(3, 16, width=24, depth=1, heads=2, patch=8)
    one, two = (
        Retrieval(benchmark=Benchmark(path=str(tmp_path), pixels=48, scales=scales)).forward(
            encoder(vit), Plain()
        )
        for scales in ((1.0,), (1.0, 0.7071, 0.5))
    )
    assert one != two


def test_features_are_made_once_for_scores_and_picture(layout: dict[str, Any], tmp_path: Path) -> None:
    backbone, data = Sees(), Plain()
    encode = encoder(backbone)
    retrieval = Retrieval(benchmark=Benchmark(path=str(tmp_path)))
    retrieval.forward(encode, data)
    seen = len(backbone.sizes)
    picture = retrieval.files(encode, data)["results.png"]
    assert len(backbone.sizes) == seen == IMAGES + QUERIES
    colours = np.asarray(Image.open(io.BytesIO(picture))).reshape(-1, 3)
    assert (colours == (150, 150, 150)).all(1).any()  # junk


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        Retrieval(benchmark=Benchmark(path=str(folder))).forward(encoder(), Plain())
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_folder_that_is_no_benchmark_is_one_line(tmp_path: Path) -> None:
    assert (
        refused(tmp_path / "nowhere")
        == f"evaluator retrieval: {tmp_path / 'nowhere'}: there is no such folder"
    )
    assert "needs one gnd_*.pkl or gnd_*.json with the queries; there is: none" in refused(tmp_path)
    (tmp_path / "gnd_a.json").write_text("{")
    assert "gnd_a.json: not a whole JSON file" in refused(tmp_path)
    (tmp_path / "gnd_b.json").write_text("{}")
    assert "there is: gnd_a.json, gnd_b.json" in refused(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qimlist": []}, "qimlist: List should have at least 1 item"),
        ({"gnd": []}, "6 queries, but ground truth of 0"),
        ({"gnd": [{"easy": [], "hard": [], "junk": []}] * 6}, "gnd.0.bbx: Field required"),
        (
            {"gnd": [{"bbx": [0, 0, 9, 9], "easy": [30], "hard": [], "junk": []}] * 6},
            "an image that is not in 0..29",
        ),
        (
            {"gnd": [{"bbx": [0, 0, 9, 9], "easy": [], "hard": [], "junk": [1]}] * 6},
            "no query of the benchmark has",
        ),
        (
            {"gnd": [{"bbx": [90, 0, 99, 9], "easy": [1], "hard": [], "junk": []}] * 6},
            "holds no pixel of the image",
        ),
        ({"imlist": ["elsewhere"] * 30}, "elsewhere.jpg: there is no such file (30 of 30 are missing)"),
    ],
)
def test_a_wrong_ground_truth_is_one_line(
    change: dict[str, Any], words: str, layout: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps(layout | change))
    assert words in refused(tmp_path)


def test_a_hostile_ground_truth_runs_nothing(layout: dict[str, Any], tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "was here"),)

    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps(layout | {"extra": Hostile()}))
    assert "gnd_toy.pkl: refused: it names posix.mkdir" in refused(tmp_path)
    assert not (tmp_path / "was here").exists()


def test_a_damaged_image_is_one_line(layout: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "jpg/place_004.jpg"
    file.write_bytes(file.read_bytes()[:300])
    assert refused(tmp_path).startswith(f"{file}: unreadable image (")
    file.write_bytes(b"no image")
    assert refused(tmp_path) == f"{file}: unreadable image (not an image); repair or remove it"


def test_more_places_than_the_benchmark_has_are_refused(layout: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="k = 31 is more than the 30 images of"):
        Retrieval(k=(31,), benchmark=Benchmark(path=str(tmp_path))).forward(encoder(), Plain())


def test_protocol_names_every_constant() -> None:
    for part in (
        "retrieval/1:",
        "k=1,5,10",
        "training split as database",
        "sum of precisions",
        "cosine",
        "teacher",
    ):
        assert part in Retrieval().protocol
    benchmark = Benchmark(path="x", pixels=512, scales=(1, 0.7071, 0.5), crop_queries=False)
    for part in (
        "512 px",
        "scales 1,0.7071,0.5",
        "queries whole",
        "junk passed over",
        "trapezoids",
        "student",
    ):
        assert part in Retrieval(benchmark=benchmark, options=EvaluatorOptions(of="student")).protocol
