"""Copy detection: copies, layouts and whitening against plain statements, and what is said of bad input."""

from __future__ import annotations

import io
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino_lab.components.backbones.vit import Vit
from dino_lab.components.data.shapes import Shapes
from dino_lab.components.evaluators._copies import KINDS, copy
from dino_lab.components.evaluators._whitening import LEAST, Whitening
from dino_lab.components.evaluators.copy_detection import CopyDetection, Generate, Whiten
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.registry import EvaluatorOptions
from dino_lab.types import BackboneOutput

SIDE = 16


class Pixels(nn.Module):
    """The pixels for features, and the images themselves for tokens; it counts what it sees."""

    dim = 3 * SIDE * SIDE

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor, self.seen = factor, 0

    def forward(self, images: Tensor) -> Tensor:
        return self.outputs(images, 1).features

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        self.seen += len(images)
        return BackboneOutput(images.flatten(1) * self.factor, tokens=images)


def encoder(backbone: nn.Module, wants: tuple[str, ...] = ()) -> Encoder:
    network = Network(backbone, nn.Identity(), mean=(0.5,) * 3, std=(0.5,) * 3).eval()
    return Encoder(network, SIDE, nullcontext, frozenset({"features", *wants}))


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(torch.device("cpu"), size=32, train_images=4, test_images=30)


def photograph(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def described(image: Image.Image) -> list[float]:
    """Of one image, by a loop over its pixels: the pixels, and the mean of powers of each channel."""
    square = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(float) / 127.5 - 1
    pooled = [float(np.mean([max(v, 1e-6) ** 4 for v in square[..., c].flat]) ** 0.25) for c in range(3)]
    return [*square.transpose(2, 0, 1).ravel().tolist(), *pooled]


def expected(
    queries: list[Image.Image], rows: list[int], originals: list[Image.Image], top: int
) -> tuple[float, float]:
    """mAP and top1 by a loop: one original, so that only its rank matters."""
    database = np.array([described(image) for image in originals])
    database /= np.linalg.norm(database, axis=1, keepdims=True)
    averages, first = [], 0
    for query, row in zip(queries, rows, strict=True):
        cosine = database @ np.array(described(query))
        rank = int((cosine > cosine[row]).sum())
        averages.append(0.0 if rank >= top else 1.0 if rank == 0 else 0.5 / (rank + 1))
        first += rank == 0
    return float(np.mean(averages)), first / len(queries)


# ---- copies


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(60, 40), (32, 32), (1, 1), (1, 90), (7, 3)])
def test_a_copy_is_another_image_decided_by_seed_kind_and_index(kind: str, size: tuple[int, int]) -> None:
    image = photograph(0, size)
    before = image.tobytes()
    made = copy(image, kind, 0, 3)
    assert made.mode == "RGB"
    assert image.tobytes() == before
    assert made.tobytes() == copy(image, kind, 0, 3).tobytes()
    if size == (60, 40):
        assert made.tobytes() != before
        others = {copy(image, kind, seed, index).tobytes() for seed in (0, 1) for index in (3, 4, 5)}
        assert len(others) > 3


def test_copies_are_as_strong_as_they_say() -> None:
    image = photograph(1, (120, 90))
    pixels = np.asarray(image).astype(int)
    for i in range(40):
        crop = copy(image, "crop", 0, i)
        assert 0.18 < crop.width * crop.height / (120 * 90) < 0.72
        assert crop.width / crop.height == pytest.approx(4 / 3, rel=0.05)
        covered = (np.asarray(copy(image, "overlay", 0, i)).astype(int) != pixels).any(-1).mean()
        assert 0.08 < covered < 0.36
        assert copy(image, "rotation", 0, i).size == image.size
    assert len({copy(image, "crop", 0, i).size for i in range(40)}) > 10


def test_a_crop_is_part_of_the_image() -> None:
    image = Image.fromarray(np.arange(40 * 60 * 3).reshape(40, 60, 3).astype(np.uint8))
    crop = np.asarray(copy(image, "crop", 0, 0))
    height, width = crop.shape[:2]
    windows = [
        np.asarray(image)[y : y + height, x : x + width]
        for y in range(41 - height)
        for x in range(61 - width)
    ]
    assert any((window == crop).all() for window in windows)


# ---- generated copies


def write(folder: Path, count: int, seed: int = 0) -> list[Image.Image]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        photograph(seed + i).save(folder / f"{seed + i:04}.png")
    return [photograph(seed + i) for i in range(count)]


def test_copies_of_a_folder_are_found_as_by_a_loop(tmp_path: Path, shapes: Shapes) -> None:
    originals = write(tmp_path, 25)
    evaluator = CopyDetection(path=str(tmp_path), generate=Generate(images=9, seed=2), top=3)
    found = evaluator.forward(encoder(Pixels()), shapes)
    rows = [0, 3, 6, 9, 12, 15, 18, 21, 24]
    for kind in KINDS:
        copies = [copy(originals[row], kind, 2, row) for row in rows]
        average, first = expected(copies, rows, originals, 3)
        assert found[f"{kind}.mAP"] == pytest.approx(average, rel=1e-6)
        assert found[f"{kind}.top1"] == first
    assert found["mAP"] == pytest.approx(np.mean([found[f"{kind}.mAP"] for kind in KINDS]))
    assert 0 < found["mAP"] < 1


def test_copies_of_the_test_split_are_found(shapes: Shapes) -> None:
    evaluator = CopyDetection(generate=Generate(images=10, kinds=("jpeg", "crop")))
    found = evaluator.forward(encoder(Pixels(), evaluator.wants), shapes)
    assert list(found) == ["jpeg.mAP", "jpeg.top1", "crop.mAP", "crop.top1", "mAP", "top1"]
    assert found["jpeg.mAP"] > found["crop.mAP"]
    assert found == evaluator.forward(encoder(Pixels(), evaluator.wants), shapes)
    other = CopyDetection(generate=Generate(images=10, kinds=("jpeg", "crop"), seed=1))
    assert found != other.forward(encoder(Pixels(), other.wants), shapes)


def test_each_image_is_seen_once(shapes: Shapes) -> None:
    backbone = Pixels()
    evaluator = CopyDetection(generate=Generate(images=10, kinds=("jpeg", "crop")))
    encode = encoder(backbone, evaluator.wants)
    evaluator.forward(encode, shapes)
    picture = evaluator.files(encode, shapes)["results.png"]
    CopyDetection(generate=evaluator.generate, top=5).forward(encode, shapes)
    encode.split(shapes, "test")
    assert backbone.seen == 30 + 2 * 10
    assert Image.open(io.BytesIO(picture)).size[0] > 900


def test_another_size_is_another_score(shapes: Shapes) -> None:
    vit = Vit(3, SIDE, width=24, depth=1, heads=2, patch=4)
    small, large = (
        CopyDetection(pixels=pixels, generate=Generate(images=10), top=None).forward(encoder(vit), shapes)
        for pixels in (16, 32)
    )
    assert small != large
    with pytest.raises(UserError, match="pixels = 30: the backbone, Vit, refuses them"):
        CopyDetection(pixels=30).forward(encoder(vit), shapes)


class Fixed(Pixels):
    """It takes one size only."""

    def outputs(self, images: Tensor, blocks: int) -> BackboneOutput:
        assert images.shape[-1] == SIDE, "Input size doesn't match model"
        return super().outputs(images, blocks)


def test_a_size_that_the_network_refuses_is_one_line(shapes: Shapes) -> None:
    with pytest.raises(
        UserError, match="pixels = 32: the backbone, Fixed, refuses them: Input size doesn't match model"
    ):
        CopyDetection(pixels=32).forward(encoder(Fixed()), shapes)


class NoTokens(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


def test_a_backbone_without_tokens_and_numbers_that_are_none_are_one_line(
    tmp_path: Path, shapes: Shapes
) -> None:
    write(tmp_path, 3)
    evaluator = CopyDetection(path=str(tmp_path), top=None)
    with pytest.raises(UserError, match="gives no patch tokens"):
        evaluator.forward(encoder(NoTokens()), shapes)
    with pytest.raises(UserError, match="not finite"):
        evaluator.forward(encoder(Pixels(float("nan"))), shapes)


# ---- Copydays


@pytest.fixture
def copydays(tmp_path: Path) -> Path:
    """Twenty originals, a strong copy or two of each, and JPEGs; the files in the order in which INRIA has them."""
    for i in range(20):
        original = photograph(i)
        save(original, tmp_path / f"original/{2000 + i}00.jpg")
        save(copy(original, "jpeg", 0, i), tmp_path / f"jpegqual/3/{2000 + i}00.jpg")
        for j in range(1, 2 + i % 2):
            save(copy(original, "crop", 0, 10 * i + j), tmp_path / f"strong/{2000 + i}0{j}.jpg")
    return tmp_path


def save(image: Image.Image, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, quality=95)


def opened(folder: Path, pattern: str) -> tuple[list[Image.Image], list[int]]:
    files = sorted(folder.glob(pattern))
    return [Image.open(file).convert("RGB") for file in files], [int(file.name[:4]) - 2000 for file in files]


def test_copydays_is_found_as_by_a_loop(copydays: Path, shapes: Shapes) -> None:
    evaluator = CopyDetection(copies="copydays", path=str(copydays), top=4)
    found = evaluator.forward(encoder(Pixels()), shapes)
    originals, _ = opened(copydays, "original/*.jpg")
    for block, pattern in (("strong", "strong/*.jpg"), ("jpegqual_3", "jpegqual/3/*.jpg")):
        average, first = expected(*opened(copydays, pattern), originals, 4)
        assert found[f"{block}.mAP"] == pytest.approx(average, rel=1e-6)
        assert found[f"{block}.top1"] == pytest.approx(first)
    assert len(found) == 6
    assert 0 < found["strong.mAP"] < 1


def test_a_flat_folder_says_the_same(copydays: Path, tmp_path_factory: Any, shapes: Shapes) -> None:
    flat = tmp_path_factory.mktemp("flat")
    for file in [*copydays.glob("original/*"), *copydays.glob("strong/*")]:
        (flat / file.name).write_bytes(file.read_bytes())
    one, other = (
        CopyDetection(copies="copydays", path=str(path), top=4).forward(encoder(Pixels()), shapes)
        for path in (copydays, flat)
    )
    assert other["copies.mAP"] == one["strong.mAP"]


def test_distractors_are_searched_and_shown(copydays: Path, tmp_path_factory: Any, shapes: Shapes) -> None:
    folder = tmp_path_factory.mktemp("more")
    originals, _ = opened(copydays, "original/*.jpg")
    more = write(folder, 30, seed=100)
    evaluator = CopyDetection(copies="copydays", path=str(copydays), distractors=str(folder), top=50)
    encode = encoder(Pixels())
    found = evaluator.forward(encode, shapes)
    average, _ = expected(*opened(copydays, "strong/*.jpg"), [*originals, *more], 50)
    assert found["strong.mAP"] == pytest.approx(average, rel=1e-6)
    assert evaluator.files(encode, shapes)["results.png"]


# ---- whitening


@pytest.mark.parametrize(("count", "dim"), [(50, 4), (500, 12)])
def test_whitened_features_have_the_identity_for_covariance(count: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(dim, dim, generator=generator)
    x = torch.randn(count, dim, generator=generator).double() @ mixture.double() + 3
    y = Whitening.learned(x, 0.5, centred=True)(x).double()
    torch.testing.assert_close(y.mean(0), torch.zeros(dim).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(y.T @ y / count, torch.eye(dim).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("power", [0.5, 0.25])
def test_whitening_keeps_cosines_as_numpy_has_them(centred: bool, power: float) -> None:
    """By the inverse root of the matrix: another basis, the same angles."""
    random = np.random.default_rng(0)
    x = random.normal(size=(80, 6)) @ random.normal(size=(6, 6)) + 1
    mean = x.mean(0)
    moments = np.cov(x.T, bias=True) if centred else x.T @ x / len(x)
    values, vectors = np.linalg.eigh(moments)
    expected = (x - mean) @ vectors @ np.diag(values**-power) @ vectors.T
    found = Whitening.learned(torch.from_numpy(x), power, centred=centred)(torch.from_numpy(x)).double()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-4, atol=1e-4)


def test_fewer_images_than_dimensions_stay_finite() -> None:
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    y = Whitening.learned(x, 0.5, centred=True)(5 * x)
    assert y.isfinite().all()
    assert y.abs().max() < 100 / LEAST**0.5


def test_whitening_changes_what_is_found(copydays: Path, tmp_path_factory: Any, shapes: Shapes) -> None:
    folder = tmp_path_factory.mktemp("others")
    write(folder, 40, seed=500)
    scores = [
        CopyDetection(copies="copydays", path=str(copydays), top=None, whitening=whitening).forward(
            encoder(Pixels()), shapes
        )["mAP"]
        for whitening in (None, Whiten(path=str(folder)), Whiten(path=str(folder), centred=False))
    ]
    assert len(set(scores)) == 3


# ---- bad input


def refused(shapes: Shapes, **parameters: Any) -> str:
    with pytest.raises(UserError) as caught:
        CopyDetection(**parameters).forward(encoder(Pixels()), shapes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_folders_that_are_not_there_or_empty_are_one_line(
    tmp_path: Path, copydays: Path, shapes: Shapes
) -> None:
    (tmp_path / "empty").mkdir()
    nowhere, empty = str(tmp_path / "nowhere"), str(tmp_path / "empty")
    days: dict[str, Any] = {"copies": "copydays", "path": str(copydays)}
    for given in (
        {"path": nowhere},
        {"copies": "copydays", "path": nowhere},
        {**days, "distractors": nowhere},
        {**days, "whitening": Whiten(path=nowhere)},
    ):
        assert refused(shapes, **given) == f"evaluator copy_detection: {nowhere}: there is no such folder"
    assert refused(shapes, path=empty) == f"evaluator copy_detection: {empty}: holds no image"
    assert "no originals: neither images in original/ nor" in refused(shapes, copies="copydays", path=empty)


def test_a_layout_that_does_not_fit_together_is_one_line(tmp_path: Path, shapes: Shapes) -> None:
    save(photograph(0), tmp_path / "original/200000.jpg")
    days: dict[str, Any] = {"copies": "copydays", "path": str(tmp_path)}
    assert "holds 1 originals, and no copy of them" in refused(shapes, **days)
    save(photograph(0), tmp_path / "strong/300001.jpg")
    assert refused(shapes, **days) == f"{tmp_path}/strong/300001.jpg: no original's name begins with '3000'"
    save(photograph(0), tmp_path / "original/200001.jpg")
    assert "two originals begin with the same 4 characters" in refused(shapes, **days)


def test_a_damaged_image_is_one_line(copydays: Path, shapes: Shapes) -> None:
    file = copydays / "strong/200001.jpg"
    file.write_bytes(file.read_bytes()[:200])
    text = refused(shapes, copies="copydays", path=str(copydays), top=4)
    assert text.startswith(f"{file}: unreadable image (")


def test_images_of_any_kind_are_read(tmp_path: Path, shapes: Shapes) -> None:
    """One pixel, 16 bits, palette, CMYK, grey with alpha, animated, turned by EXIF."""
    image = photograph(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("P").save(tmp_path / "palette.png")
    image.convert("LA").save(tmp_path / "alpha.png")
    image.save(tmp_path / "moves.gif", save_all=True, append_images=[photograph(1)])
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(tmp_path / "sixteen.png")
    Image.new("RGB", (1, 1), (9, 200, 30)).save(tmp_path / "pixel.png")
    found = CopyDetection(path=str(tmp_path), top=7).forward(encoder(Pixels()), shapes)
    assert all(0 <= score <= 1 for score in found.values())


def test_more_places_than_images_are_refused(copydays: Path, shapes: Shapes) -> None:
    text = refused(shapes, copies="copydays", path=str(copydays), top=21)
    assert text == "evaluator copy_detection: top = 21 is more than the 20 images that are searched"


def test_parameters_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="copydays needs a path, the folder"):
        CopyDetection(copies="copydays")
    with pytest.raises(ValueError, match="takes the copies that are there"):
        CopyDetection(copies="copydays", path="x", generate=Generate(images=3))
    with pytest.raises(ValueError, match="names a kind twice: blur, blur"):
        CopyDetection(generate=Generate(kinds=("blur", "blur")))


def test_protocol_names_every_constant() -> None:
    one = CopyDetection(pixels=320, whitening=Whiten(path="x", centred=False), distractors="y").protocol
    for part in (
        "copy_detection/1:",
        "100 test images",
        "quality 3-30",
        "320 px",
        "GeM(p=4)",
        "power 0.5 by second moments",
        "1e-05",
        "distractors: a folder",
        "top 20",
        "teacher",
    ):
        assert part in one
    other = CopyDetection(
        copies="copydays", path="x", top=None, options=EvaluatorOptions(of="student")
    ).protocol
    for part in ("4 characters", "not whitened", "distractors: none", "whole ranking", "student"):
        assert part in other
    assert "\n" not in one + other
