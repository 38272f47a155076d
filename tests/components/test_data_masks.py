"""Data with masks: Parquet with a mask column, VOC folders, and what is said about masks that cannot be used."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data.parquet import Parquet
from dino_lab.components.data.voc import CLASSES, Voc
from dino_lab.errors import Misfit, UserError
from dino_lab.imaging.decode import decode, decode_mask

CPU = torch.device("cpu")
REAL = Path(os.environ.get("DINO_LAB_DATA", "/nowhere"))


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photograph(seed: int, width: int = 20, height: int = 12) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def mask(boxes: dict[int, tuple[int, int, int, int]], width: int = 20, height: int = 12) -> Image.Image:
    """Values in boxes x0 y0 x1 y1, the later over the earlier."""
    values = np.zeros((height, width), np.uint8)
    for value, (x0, y0, x1, y1) in boxes.items():
        values[y0:y1, x0:x1] = value
    return Image.fromarray(values)


def write(file: Path, masks: list[bytes | None], images: list[bytes] | None = None) -> None:
    images = images or [saved(photograph(i)) for i in range(len(masks))]
    table = {"image": [{"bytes": i} for i in images], "mask": [{"bytes": m} for m in masks]}
    pq.write_table(pa.table(table), file)


def parquet(folder: Path, size: int = 12, **options: Any) -> Parquet:
    given: dict[str, Any] = {"train": None, "label_column": None, "mask_column": "mask"}
    return Parquet(CPU, path=str(folder), size=size, **(given | options))


def test_a_mask_is_cut_as_its_image_is() -> None:
    """An object painted into the image is where its mask says, upright and square."""
    for orientation in (1, 3, 6, 8):
        for box in ((4, 2, 12, 10), (8, 0, 20, 6)):
            shape = mask({255: box})
            exif = Image.Exif()
            exif[0x0112] = orientation
            image = Image.open(io.BytesIO(saved(shape.convert("RGB"), exif=exif)))
            turned = Image.open(io.BytesIO(saved(shape, exif=exif)))
            like = (20, 12) if orientation in (1, 3) else (12, 20)
            pixels = decode(image, 12)
            assert np.array_equal(pixels[0] > 127, decode_mask(turned, like, 12) > 127)


def test_parquet_with_masks_to_evaluate_on_only(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [saved(mask({255: (6, 2, 10, 8)})), saved(mask({1: (4, 0, 16, 12)}))])
    data = parquet(tmp_path)
    assert (data.train_images, data.test_images, data.classes) == (0, 2, 1)
    images, labels, masks, parts, boxes = data.annotated("test", torch.tensor([1, 0]))
    assert torch.equal(images, next(data.test(2))[0].flip(0))
    assert labels.tolist() == [0, 0]
    assert masks.dtype == torch.bool
    assert torch.equal(parts, masks.to(torch.uint8))
    assert boxes.tolist() == [[0, 0, 12, 12], [2, 2, 6, 8]]  # columns 4 to 16 are the square
    objects, classes = data.segmented("test", torch.tensor([1, 0]))
    assert torch.equal(objects, parts)
    assert torch.equal(classes, parts)
    for name, arguments in (("train", (1, 0, 0)), ("bank", (1,))):
        with pytest.raises(UserError, match="no training split"):
            getattr(data, name)(*arguments)


def test_numbered_masks_have_several_objects_and_void(tmp_path: Path) -> None:
    values = mask({1: (4, 0, 8, 4), 3: (8, 4, 12, 8), 255: (12, 8, 16, 12)})
    write(tmp_path / "test.parquet", [saved(values)])
    objects, classes = parquet(tmp_path, masks="numbered").segmented("test", torch.tensor([0]))
    assert objects.unique().tolist() == [0, 1, 3, 255]
    assert classes.unique().tolist() == [0, 1, 255]
    assert parquet(tmp_path, masks="numbered").annotated("test", torch.tensor([0]))[4].tolist() == [
        [0, 0, 8, 8]
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "its mask cannot be used (the row holds no bytes)"),
        (b"nothing", "its mask cannot be used ("),
        (saved(mask({255: (0, 0, 5, 5)}, 20, 14)), "(20 x 14 pixels, but its image has 20 x 12)"),
        (saved(mask({})), "its mask has no object in it"),
        (saved(photograph(0)), "its pixels are RGB, not grey or palette"),
        (
            saved(Image.fromarray(np.full((12, 20), 300, np.uint16))),
            "values from 300 to 300, not from 0 to 255",
        ),
        (saved(mask({255: (0, 0, 5, 5)}))[:-30], "its mask cannot be used ("),
    ],
)
def test_a_bad_mask_is_one_line_that_names_the_row(tmp_path: Path, bad: bytes | None, message: str) -> None:
    write(tmp_path / "test.parquet", [saved(mask({255: (6, 2, 10, 8)})), bad])
    with pytest.raises(UserError) as caught:
        parquet(tmp_path).annotated("test", torch.arange(2))
    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/test.parquet: row 1: ")
    assert message in text
    assert "\n" not in text


def test_images_that_are_left_out_take_their_masks_along(tmp_path: Path) -> None:
    images = [saved(photograph(0)), b"broken", saved(photograph(2))]
    write(tmp_path / "test.parquet", [saved(mask({255: (4 + i, 0, 10, 8)})) for i in range(3)], images)
    data = parquet(tmp_path, options=FileOptions(on_bad_image="skip"))
    assert data.annotated("test", torch.tensor([1]))[4].tolist() == [[2, 0, 6, 8]]


def test_what_is_said_of_requests(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", [saved(mask({255: (6, 2, 10, 8)}))])
    with pytest.raises(UserError, match=r"no column 'object' \(data\.mask_column\); there is: image, mask"):
        parquet(tmp_path, mask_column="object")
    with pytest.raises(UserError, match=r"data\.mask_column names the column"):
        parquet(tmp_path, mask_column=None).annotated("test", torch.tensor([0]))
    with pytest.raises(UserError, match=r"with data\.train: null it should be one"):
        parquet(tmp_path / "test.parquet")


def test_nothing_is_trained_without_a_training_split(tmp_path: Path, tiny_spec: Any) -> None:
    from dino_lab.registry import registry
    from dino_lab.training.build import build

    write(tmp_path / "test.parquet", [saved(mask({255: (6, 2, 10, 8)}))])
    data = f"{{name: parquet, path: {tmp_path}, size: 16, train: null, label_column: null}}"
    with pytest.raises(Misfit, match="no training split"):
        build(tiny_spec(f"data={data}"), registry, CPU)


# ---- VOC


def voc(root: Path, **lists: list[tuple[Image.Image, Image.Image]]) -> Path:
    """A tiny VOC folder: of each list pairs of object and class masks."""
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name, pairs in lists.items():
        names = [f"2007_{name}{i}" for i in range(len(pairs))]
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(names) + "\n")
        for i, (image, (objects, classes)) in enumerate(zip(names, pairs, strict=True)):
            (root / f"JPEGImages/{image}.jpg").write_bytes(saved(photograph(i), "JPEG"))
            for kind, values in (("Object", objects), ("Class", classes)):
                palette = values.copy()
                palette.putpalette([i * 7 % 256 for i in range(768)])
                (root / f"Segmentation{kind}/{image}.png").write_bytes(saved(palette))
    return root


CAT, DOG = CLASSES.index("cat") + 1, CLASSES.index("dog") + 1
PAIR = (
    mask({1: (4, 0, 10, 6), 2: (10, 6, 16, 12), 255: (4, 0, 5, 6)}),
    mask({CAT: (4, 0, 10, 6), DOG: (10, 6, 16, 12), 255: (4, 0, 5, 6)}),
)
ALONE = (mask({1: (8, 4, 12, 8)}), mask({CAT: (8, 4, 12, 8)}))


def test_voc_has_several_objects_of_several_classes(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC2007", train=[ALONE, PAIR, PAIR], val=[ALONE, PAIR])
    data = Voc(CPU, path=str(root), size=12)
    assert (data.train_images, data.test_images, data.classes) == (3, 2, 20)
    assert next(data.test(2))[1].tolist() == [
        CAT - 1,
        DOG - 1,
    ]  # the dog is larger by what is void of the cat
    images, labels, masks, _, boxes = data.annotated("test", torch.arange(2))
    assert torch.equal(images, next(data.test(2))[0])
    assert labels.tolist() == [CAT - 1, DOG - 1]
    assert boxes.tolist() == [[4, 4, 8, 8], [1, 0, 12, 12]]
    objects, classes = data.segmented("test", torch.arange(2))
    assert objects[1].unique().tolist() == [0, 1, 2, 255]
    assert classes[1].unique().tolist() == [0, CAT, DOG, 255]
    assert torch.equal(masks, (objects > 0) & (objects < 255))
    assert torch.equal((objects == 2), (classes == DOG))
    only = Voc(CPU, path=str(root), size=12, train=None)
    assert (only.train_images, only.test_images) == (0, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no list", r"data\.test: .*val\.txt does not exist; there is: train"),
        ("empty list", r"val\.txt: names no image"),
        ("no mask", r"2007_val0\.png: its mask cannot be used \(No such file or directory\)"),
        ("no object", r"SegmentationObject/2007_val0\.png: has no object in it"),
        ("other size", r"SegmentationObject/2007_val0\.png: .*20, 12.* but .*SegmentationClass"),
        ("colours", r"2007_val0\.png: its mask cannot be used \(its pixels are RGB"),
        ("no class", r"its largest object is of class 0, not 1 to 20"),
        ("no image", r"JPEGImages/2007_val0\.jpg: unreadable image"),
    ],
)
def test_what_is_said_of_a_voc_folder(tmp_path: Path, damage: str, message: str) -> None:
    root = voc(tmp_path / "VOC", train=[ALONE], val=[ALONE])
    objects, classes = (root / f"Segmentation{kind}/2007_val0.png" for kind in ("Object", "Class"))
    {
        "no list": lambda: (root / "ImageSets/Segmentation/val.txt").unlink(),
        "empty list": lambda: (root / "ImageSets/Segmentation/val.txt").write_text("\n"),
        "no mask": objects.unlink,
        "no object": lambda: objects.write_bytes(saved(mask({255: (0, 0, 4, 4)}))),
        "other size": lambda: classes.write_bytes(saved(mask({CAT: (0, 0, 4, 4)}, 20, 13))),
        "colours": lambda: objects.write_bytes(saved(photograph(0))),
        "no class": lambda: classes.write_bytes(saved(mask({}))),
        "no image": lambda: (root / "JPEGImages/2007_val0.jpg").unlink(),
    }[damage]()
    with pytest.raises(UserError, match=message) as caught:
        Voc(CPU, path=str(root), size=12)
    assert "\n" not in str(caught.value)


def test_a_voc_mask_of_another_size_than_its_image(tmp_path: Path) -> None:
    root = voc(tmp_path / "VOC", train=[ALONE], val=[ALONE])
    (root / "JPEGImages/2007_val0.jpg").write_bytes(saved(photograph(0, 24, 12), "JPEG"))
    with pytest.raises(UserError, match=r"2007_val0\.jpg: .* \(20 x 12 pixels, but its image has 24 x 12\)"):
        Voc(CPU, path=str(root), size=12).annotated("test", torch.arange(1))


def test_voc_errors_of_the_request(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: .*none is not a folder"):
        Voc(CPU, path=str(tmp_path / "none"), size=12)
    root = voc(tmp_path / "VOC", val=[ALONE])
    with pytest.raises(UserError, match=r"no training split \(data\.train: null\)"):
        Voc(CPU, path=str(root), size=12, train=None).annotated("train", torch.arange(1))


# ---- real


@pytest.mark.skipif(not (REAL / "davis_masks").is_dir(), reason="no davis_masks in DINO_LAB_DATA")
def test_davis_frames() -> None:
    data = parquet(REAL / "davis_masks", size=240)
    assert (data.train_images, data.test_images) == (0, 67)
    _, _, masks, _, boxes = data.annotated("test", torch.arange(0, 67, 8))
    shares = masks.float().mean((1, 2))
    assert shares.min() > 0.01
    assert shares.max() < 0.6
    assert (boxes[:, 2:] > boxes[:, :2]).all()
