"""Images of many sizes: what `crops: full` reads, and the crops that are cut from them."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_shards import write_tar
from PIL import Image
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from dino_lab.building.data_check import check_data
from dino_lab.building.seeding import drawing_from
from dino_lab.components.augment._lists import policy
from dino_lab.components.augment._policy import FusedPass, Share
from dino_lab.components.augment.multicrop import MultiCrop
from dino_lab.components.augment.triplet import Triplet
from dino_lab.components.augment.views import Group, ListedViews
from dino_lab.components.data import _storage
from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data._pack import pack
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.parquet import Parquet
from dino_lab.components.data.shards import Shards
from dino_lab.errors import Misfit, UserError
from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.kernels.crops.resize import sample_boxes
from dino_lab.types import WholeImages

CPU = torch.device("cpu")
REAL = Path(os.environ.get("DINO_LAB_DATA", "/nowhere")) / "clothing10"
SIZES = [(40, 30), (25, 61), (80, 80), (33, 90), (200, 21)]  # width, height; the last are panoramas
Opened = Callable[..., ImageFolder]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(width: int, height: int, seed: int) -> Image.Image:
    """Colours that vary slowly, so that a shift by part of a pixel is small, and is not nothing."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def tensors(sizes: list[tuple[int, int]] = SIZES) -> list[Tensor]:
    return [F.pil_to_tensor(smooth(*size, i)) for i, size in enumerate(sizes)]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    """A folder of two classes whose images are of many sizes, opened with some options."""
    for split in ("train", "test"):
        for i, size in enumerate(SIZES):
            file = tmp_path / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            smooth(*size, i).save(file)
    return lambda **given: ImageFolder(
        CPU, path=str(tmp_path), size=16, options=FileOptions(**{"crops": "full", **given})
    )


def by_size(batch: WholeImages) -> dict[tuple[int, int], Tensor]:
    return {(image.shape[2], image.shape[1]): image for image in batch}


# ---- what is read


@pytest.mark.parametrize("stream", [False, True])
def test_training_sees_whole_images_and_evaluators_squares(
    opened: Opened, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stream:
        monkeypatch.setattr(_storage, "RESIDENT_SHARE", 0.0)
        monkeypatch.setattr(_storage, "workers", lambda: 1)
    data, squares = opened(), opened(crops="square")
    assert data.resident is not stream
    batch, labels = next(data.train(5, 0, 0))
    assert isinstance(batch, WholeImages)
    found = by_size(batch)
    for i, size in enumerate(SIZES):
        assert torch.equal(found[size], F.pil_to_tensor(smooth(*size, i)))
    assert torch.equal(labels, next(squares.train(5, 0, 0))[1])
    for split in ("bank", "test"):
        (ours, _), (theirs, _) = (next(getattr(each, split)(5)) for each in (data, squares))
        assert torch.equal(ours, theirs)


def test_some_images_of_a_batch_are_those_of_the_whole(opened: Opened) -> None:
    data = opened()
    whole, some = next(data.train(5, 3, 0))[0], next(data.train_share(5, 3, 0, slice(1, 4)))[0]
    assert isinstance(whole, WholeImages)
    assert all(torch.equal(a, b) for a, b in zip(some, whole[1:4], strict=True))
    assert whole[1:4].pixels is whole.pixels  # without a copy
    moved = whole[1:4].to(torch.device("meta"))
    assert moved.pixels.nbytes == whole[1:4].nbytes < whole.pixels.nbytes


def test_longest_bounds_the_longer_side_and_keeps_the_aspect(opened: Opened) -> None:
    batch = next(opened(longest=50).train(5, 0, 0))[0]
    assert set(by_size(batch)) == {(40, 30), (20, 50), (50, 50), (18, 50), (50, 5)}
    with pytest.raises(Misfit, match="of whole images; crops: full gives"):
        opened(crops="square", longest=50)


def test_a_jpeg_is_decoded_at_a_part_of_its_size_where_that_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "test"):
        (tmp_path / split / "a").mkdir(parents=True)
        smooth(800, 600, 0).save(tmp_path / split / "a" / "0.jpg", quality=95)
    drafts: list[tuple[int, int]] = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: (drafts.append(self.size), load(self))[1])

    def read(**options: Any) -> Tensor:
        drafts.clear()
        data = ImageFolder(CPU, path=str(tmp_path), size=8, options=FileOptions(crops="full", **options))
        (image,) = next(data.train(1, 0, 0))[0]
        return image

    small = read(longest=100)
    assert (200, 150) in drafts
    assert (800, 600) not in drafts
    wanted = F.pil_to_tensor(smooth(800, 600, 0).resize((100, 75), Image.Resampling.BICUBIC))
    assert (small.int() - wanted.int()).abs().float().mean() < 1.5
    assert read().shape == (3, 600, 800)
    assert (800, 600) in drafts


def test_a_folder_that_cannot_be_packed_whole_is_refused(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a pack holds squares; data\.crops: full"):
        pack(opened(), {}, tmp_path / "pack", lambda done, total: None)


# ---- crops


def fused(size: int, ops: list[Any], views: int = 1) -> FusedPass:
    (only,) = policy(views, size, ops).passes
    assert isinstance(only, FusedPass)
    return only


def measures(boxes: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """Of boxes [N, 4] in images of sizes [N, 2]: share of the area, logarithm of the aspect, and the middle."""
    (top, left, h, w), (height, width) = boxes.double().unbind(1), sizes.double().unbind(1)
    middle = {"row": (top + h / 2) / height, "column": (left + w / 2) / width}
    return {"area": h * w / (height * width), "aspect": (w / h).log(), **middle}


def assert_distributed_as_torchvisions(sizes: Tensor, scale: tuple[float, float]) -> None:
    """Boxes in images of sizes int64 [N, 2], by the Kolmogorov-Smirnov test of each measure."""
    ours = sample_boxes((len(sizes),), sizes[:, 0], sizes[:, 1], scale, seeded())
    with drawing_from(seeded(1)):
        images = (torch.empty(3, *size, device="meta") for size in sizes.tolist())
        theirs = [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for image in images]
    expected = measures(torch.tensor(theirs), sizes)
    for name, found in measures(ours, sizes).items():
        p = ks_2samp(found, expected[name], method="asymp").pvalue
        assert p > 1e-3, f"{name}: p = {p:.1e}"


SCALES = [(0.05, 0.4), (0.4, 1.0)]  # DINO's


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("width", "height"), [(213, 160), (500, 375), (120, 400), (600, 90)])
def test_boxes_are_distributed_as_torchvisions(width: int, height: int, scale: tuple[float, float]) -> None:
    """Of the last two, panoramas, most or all boxes are the fallback."""
    assert_distributed_as_torchvisions(torch.tensor([[height, width]]).repeat(2000, 1), scale)


@pytest.mark.skipif(not REAL.is_dir(), reason="no clothing10 in DINO_LAB_DATA")
@pytest.mark.parametrize("scale", SCALES)
def test_boxes_of_photographs_are_distributed_as_torchvisions(scale: tuple[float, float]) -> None:
    data = Parquet(CPU, path=str(REAL), train="val.parquet", size=8, options=FileOptions(crops="full"))
    photographs = next(data.train(data.train_images, 0, 0))[0]
    assert isinstance(photographs, WholeImages)
    assert len(photographs.sizes.unique(dim=0)) > 20
    assert_distributed_as_torchvisions(photographs.sizes.repeat(8, 1), scale)


def test_boxes_lie_in_their_images() -> None:
    sizes = torch.tensor([(height, width) for width, height in SIZES] * 200)
    top, left, h, w = sample_boxes((len(sizes),), sizes[:, 0], sizes[:, 1], (0.05, 1.0), seeded()).unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (h >= 1).all()
    assert (w >= 1).all()
    assert (top + h <= sizes[:, 0]).all()
    assert (left + w <= sizes[:, 1]).all()


@pytest.mark.parametrize(("way", "most"), [(by_crop, 1.01), (by_batch, 1.6)], ids=["CPU", "elsewhere"])
@pytest.mark.parametrize("size", [12, 40])
def test_a_crop_is_pillows(way: Any, most: float, size: int) -> None:
    """Reduced and enlarged crops, cut and resized by Pillow: at most a level away from whole grey levels."""
    only, images = fused(size, [{"crop": {"scale": [0.1, 1.0]}}, "flip"], 2), tensors()
    whole, B = WholeImages.of(images), len(images)
    share = Share(2, B, slice(0, B))
    with drawing_from(seeded()):
        drawn = only.sample((2 * B, 3, size, size), share, share.sizes(whole))
    ours = 255 * way.make(whole, drawn, size, 0)  # [2, B, 3, size, size]
    assert drawn.boxes is not None
    assert drawn.flipped is not None
    for view in range(2):
        for i, image in enumerate(images):
            box = drawn.boxes[view, i].int().tolist()
            crop = F.resized_crop(F.to_pil_image(image), *box, [size, size], InterpolationMode.BICUBIC)
            theirs = F.pil_to_tensor(F.hflip(crop) if drawn.flipped[view, i] else crop)
            assert (ours[view, i] - theirs).abs().max() <= most


def test_images_of_one_size_get_the_same_crops_either_way() -> None:
    images = torch.stack(tensors([(30, 30)] * 4))
    augment = MultiCrop(global_size=16, local_size=8, local_views=2)
    plain = augment.forward(images, seeded()).crops
    whole = augment.forward(WholeImages.of(list(images)), seeded()).crops
    assert all(torch.equal(a, b) for a, b in zip(plain, whole, strict=True))


def test_crops_of_a_share_are_those_of_the_batch() -> None:
    whole, augment = WholeImages.of(tensors()), MultiCrop(global_size=16, local_size=8, local_views=2)
    every = augment.forward(whole, seeded()).crops
    some = augment.forward_share(whole[1:4], seeded(), len(whole), 1).crops
    assert all(torch.equal(a[:, 1:4], b) for a, b in zip(every, some, strict=True))


def test_each_image_of_a_larger_buffer_is_found() -> None:
    whole, augment = WholeImages.of(tensors()), Triplet(size=8)
    rows = torch.tensor([4, 0, 2])
    shared = augment.forward(whole[rows], seeded()).crops[0]
    alone = augment.forward(WholeImages.of([tensors()[row] for row in rows]), seeded()).crops[0]
    assert torch.equal(shared, alone)


def test_what_comes_before_the_crop_needs_one_size() -> None:
    group = Group.model_validate({"size": 8, "ops": [{"blur": 1.0}, "crop"]})
    blurred_first = ListedViews(groups=(group,), pairs="none")
    with pytest.raises(UserError, match=r"data\.crops: full\) are cut first; blur comes before any crop"):
        blurred_first.forward(WholeImages.of(tensors()), seeded())


def test_an_augmentation_that_takes_squares_alone_is_refused(opened: Opened) -> None:
    class Squares:
        groups = ((1, 8),)

        def forward(self, images: Tensor, generator: torch.Generator) -> Any:
            return images.float()

    for augment, crops, refused in ((Squares(), "square", False), (Squares(), "full", True)):
        if refused:
            with pytest.raises(Misfit, match=r"refuses images of 3 channels and many sizes \(data.crops"):
                check_data(opened(crops=crops), augment, [], 2, CPU)  # type: ignore[arg-type]
        else:
            check_data(opened(crops=crops), augment, [], 2, CPU)  # type: ignore[arg-type]


def test_sizes_are_of_the_images_and_not_of_the_buffer() -> None:
    whole = WholeImages.of_one_size(torch.stack(tensors([(7, 5)] * 3)))
    assert [tuple(image.shape) for image in whole] == [(3, 5, 7)] * 3
    assert dataclasses.replace(whole, pixels=whole.pixels.clone()).nbytes == 3 * 3 * 5 * 7


# ---- shards


@pytest.mark.parametrize("bands", [None, (3, 1)])
def test_shards_give_whole_images_and_bands(
    bands: tuple[int, ...] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(_storage, "workers", lambda: 1)
    images: dict[str, bytes] = {}
    for i, size in enumerate(SIZES):
        buffer = io.BytesIO()
        smooth(*size, i).save(buffer, "PNG")
        images[f"{i}"] = buffer.getvalue()
    for split in ("train", "test"):
        write_tar(tmp_path / f"{split}.tar", {stem: {"png": content} for stem, content in images.items()})
    C = 3 if bands is None else len(bands)
    options = FileOptions(crops="full", channels=bands, mean=(0.5,) * C, std=(0.2,) * C)
    data = Shards(
        CPU, path=str(tmp_path / "train.tar"), test=str(tmp_path / "test.tar"), size=16, options=options
    )
    assert (data.whole, data.channels) == (True, C)
    batch = next(data.train(5, 0, 0))[0]
    assert isinstance(batch, WholeImages)
    chosen = [number - 1 for number in bands or (1, 2, 3)]
    for size, image in by_size(batch).items():
        assert torch.equal(image, F.pil_to_tensor(smooth(*size, SIZES.index(size)))[chosen])
    assert next(data.bank(5))[0].shape == (5, C, 16, 16)
