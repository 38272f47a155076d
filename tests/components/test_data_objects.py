"""COCO's instances, boxes of VOC, and the videos of DAVIS, as they lie on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.components.data._outlined_masks import decompressed, mask_of
from dino_lab.components.data.coco import Coco
from dino_lab.components.data.davis import Davis
from dino_lab.components.data.voc import CLASSES, Voc
from dino_lab.errors import Misfit, UserError

CPU = torch.device("cpu")
SIDE = 16


def square(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def photograph(file: Path, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


# ---- outlines


def inside(x: float, y: float, polygon: list[float]) -> bool:
    """Whether a ray from a point to the left crosses an odd number of edges: one edge at a time."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    odd = False
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        if (y0 > y) != (y1 > y) and x0 + (y - y0) / (y1 - y0) * (x1 - x0) <= x:
            odd = not odd
    return odd


@pytest.mark.parametrize(
    "polygon",
    [
        square(2, 3, 6, 9),
        [1.2, 1.7, 12.4, 3.1, 9.9, 13.6, 3.3, 8.8],
        [0, 0, 12, 12, 12, 0, 0, 12],  # its outline crosses itself
        [-5, -5, 30, -5, 30, 30, -5, 30],  # larger than the image
        [2, 2, 10, 2, 6, 6],
    ],
)
def test_polygons_have_the_pixels_whose_centres_are_inside(polygon: list[float]) -> None:
    naive = [[inside(x + 0.5, y + 0.5, polygon) for x in range(14)] for y in range(11)]
    assert np.array_equal(mask_of([polygon], 14, 11), naive)


def test_several_polygons_are_one_object() -> None:
    mask = mask_of([square(0, 0, 3, 3), square(2, 2, 5, 5)], 8, 8)
    assert mask.sum() == 9 + 9 - 1
    assert mask[:3, :3].all()


def test_run_lengths_go_down_the_columns() -> None:
    """Counts and text of the example in pycocotools' documentation."""
    counts = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert decompressed("61X13mN000`0") == counts
    mask = mask_of({"size": [9, 10], "counts": "61X13mN000`0"}, 10, 9)
    assert np.array_equal(mask, mask_of({"size": [9, 10], "counts": counts}, 10, 9))
    flat = np.repeat(np.arange(9) % 2, counts)
    assert np.array_equal(mask, flat.reshape(10, 9).T == 1)
    assert mask.sum() == 13


@pytest.mark.parametrize(
    ("outline", "message"),
    [
        ({"size": [9, 10], "counts": [6, 1]}, "run lengths of 7 pixels for an image of 90"),
        ({"size": [10, 9], "counts": [90]}, r"run lengths of \[10, 9\] for an image of \[9, 10\]"),
        ("box", "a segmentation is a list of polygons"),
        ([[1, 1, 2, 2]], "a polygon of 2 points"),
    ],
)
def test_outlines_that_are_none(outline: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mask_of(outline, 10, 9)


# ---- COCO


def instances(objects: dict[int, list[dict[str, Any]]], images: int = 3) -> dict[str, Any]:
    """Annotations of categories 3 (cat) and 18 (dog), of images 1, 2, ..."""
    return {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": i, "file_name": f"{i:012}.png"} for i in range(1, images + 1)],
        "annotations": [{"image_id": i, **one} for i, its in objects.items() for one in its],
    }


CAT = {"category_id": 3, "segmentation": [square(0, 0, 8, 8)], "area": 64, "bbox": [0, 0, 8, 8], "iscrowd": 0}
DOG = {"category_id": 18, "segmentation": [square(4, 4, 8, 12)], "area": 32, "bbox": [4, 4, 4, 8]}
BOX = {"category_id": 18, "segmentation": [], "bbox": [8, 8, 4, 2]}
CROWD = {
    "category_id": 18,
    "iscrowd": 1,
    "area": 128,
    "bbox": [8, 0, 8, 16],
    "segmentation": {"size": [SIDE, SIDE], "counts": [128, 128]},
}


def coco(root: Path, train: dict[str, Any], test: dict[str, Any], images: str = "{split}") -> Path:
    for split, content in (("train2017", train), ("val2017", test)):
        file = root / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        for i, image in enumerate(content["images"]):
            photograph(root / images.replace("{split}", split) / image["file_name"], i)
    return root


def test_coco_has_labels_boxes_and_masks(tmp_path: Path) -> None:
    train = instances({1: [DOG, CAT], 2: [BOX], 3: [CROWD]})
    test = instances({1: [CROWD, DOG, CAT], 2: [BOX, {**CAT, "area": 1}]}, images=2)
    data = Coco(CPU, path=str(coco(tmp_path, train, test)), size=SIDE)
    assert data.class_names == ("cat", "dog")
    assert data.labels("train").tolist() == [0, 1]
    assert data.labels("test").tolist() == [0, 1]  # by the area that the file states
    lines = data.found().lines()
    assert "passed over: 1 image without an object: 000000000003.png" in lines
    _, labels, masks, _, boxes = data.annotated("test", torch.arange(2))
    objects, classes = data.segmented("test", torch.arange(2))
    # The smaller dog lies over the cat, and the crowd, of columns 8 to 16, is void.
    assert objects[0, 2, 2] == 1
    assert objects[0, 5, 5] == 2
    assert (objects[0] == 1).sum() == 64 - 16
    assert (objects[0] == 2).sum() == 32
    assert classes[0, 5, 5] == 2
    assert classes[0, 2, 2] == 1
    assert (objects[0] == 255).sum() == 128
    assert torch.equal(masks, (objects > 0) & (objects < 255))
    assert boxes[0].tolist() == [0, 0, 8, 12]
    assert torch.equal(classes[1] == 2, (objects[1] == 1))
    assert (objects[1] == 1).sum() == 8
    assert labels.tolist() == [0, 1]


def test_coco_without_labels_has_all_images(tmp_path: Path) -> None:
    root = coco(tmp_path, instances({}), instances({1: [DOG]}), images="images/{split}")
    data = Coco(CPU, path=str(root), size=SIDE, labels="none")
    assert (data.train_images, data.test_images, data.labelled) == (3, 3, False)
    assert data.labels("test").tolist() == [0, 0, 0]
    assert data.segmented("test", torch.arange(1))[1].unique().tolist() == [0, 2]
    with pytest.raises(UserError, match="its mask has no object in it"):
        data.segmented("test", torch.arange(3))


def test_annotations_beside_the_images(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        content = instances({i: [CAT if i % 2 else DOG] for i in (1, 2, 3)})
        for image in content["images"]:
            photograph(tmp_path / split / image["file_name"])
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(content))
    named = {"train": "train", "test": "valid", "annotations": "{split}/_annotations.coco.json"}
    data = Coco(CPU, path=str(tmp_path), size=SIDE, **named)
    assert data.labels("test").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("given", "content", "message"),
    [
        ({"test": "val2014"}, "", r"data.test: .*val2014.json does not exist; there is: instances_train2017"),
        ({"images": "pictures"}, "", r"data.images: .*pictures does not exist"),
        ({}, "{", r"instances_val2017.json: no file of COCO's instances"),
        ({}, "[]", r"instances_val2017.json: no file of COCO's instances"),
        (
            {},
            json.dumps(instances({1: [{"category_id": 3}]})),
            r"no file of COCO's instances \('bbox'\)",
        ),
        ({}, json.dumps(instances({1: [{**CAT, "category_id": 4}]})), r"an object of category 4, which it"),
        (
            {},
            json.dumps({**instances({1: [CAT]}), "categories": [{"id": 3, "name": "sheep"}]}),
            r"category 3 is sheep, and cat in .*instances_train2017",
        ),
    ],
)
def test_what_is_said_of_a_coco_folder(
    tmp_path: Path, given: dict[str, Any], content: str, message: str
) -> None:
    root = coco(tmp_path, instances({1: [CAT]}), instances({1: [CAT]}))
    if content:
        (root / "annotations/instances_val2017.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        Coco(CPU, path=str(root), size=SIDE, **given)
    assert "\n" not in str(caught.value)


def test_a_wrong_outline_names_its_image(tmp_path: Path) -> None:
    wrong = {**CAT, "segmentation": {"size": [3, 3], "counts": [9]}}
    root = coco(tmp_path, instances({1: [CAT]}), instances({1: [wrong]}))
    data = Coco(CPU, path=str(root), size=SIDE)
    with pytest.raises(
        UserError, match=r"000000000001.png: its mask cannot be used \(run lengths of \[3, 3\]"
    ):
        data.annotated("test", torch.arange(1))


# ---- boxes of VOC


def boxed(root: Path, name: str, objects: list[tuple[str, tuple[int, int, int, int]]]) -> None:
    """An image with boxes, whose pixels are counted from 1 and whose last ones belong to them."""
    photograph(root / "JPEGImages" / f"{name}.jpg")
    keys = ("xmin", "ymin", "xmax", "ymax")
    parts = [
        f"<object><name>{kind}</name><part><name>head</name></part><bndbox>"
        + "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, box, strict=True))
        + "</bndbox></object>"
        for kind, box in objects
    ]
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"<annotation><filename>{name}.jpg</filename>{''.join(parts)}</annotation>")


def test_boxes_of_voc(tmp_path: Path) -> None:
    boxed(tmp_path, "a", [("dog", (1, 1, 4, 4)), ("cat", (3, 3, 12, 12))])
    boxed(tmp_path, "b", [("dog", (1, 1, 16, 16))])
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a -1\nb 1\n")
    (lists / "val.txt").write_text("a\n")
    data = Voc(CPU, path=str(tmp_path), size=SIDE, objects="boxes")
    cat, dog = CLASSES.index("cat"), CLASSES.index("dog")
    assert data.labels("train").tolist() == [cat, dog]
    objects, classes = (its[0] for its in data.segmented("test", torch.arange(1)))
    assert (objects == 1).sum() == 100 - 4
    assert (objects == 2).sum() == 16
    assert torch.equal(classes == dog + 1, objects == 2)
    assert objects[3, 3] == 2
    boxed(tmp_path, "a", [("unicorn", (1, 1, 4, 4))])
    with pytest.raises(UserError, match=r"a.xml: its boxes cannot be read \(an object of class 'unicorn'\)"):
        Voc(CPU, path=str(tmp_path), size=SIDE, objects="boxes")
    boxed(tmp_path, "a", [])
    with pytest.raises(UserError, match=r"a.xml: has no object in it"):
        Voc(CPU, path=str(tmp_path), size=SIDE, objects="boxes")


# ---- DAVIS


def davis(root: Path, lists: str = "ImageSets/2017", value: int = 1) -> Path:
    """Three videos of two frames, in which object `value` moves."""
    for video in ("bear", "bus", "camel"):
        for frame in range(2):
            photograph(root / f"JPEGImages/480p/{video}/{frame:05}.jpg", frame)
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[4 : 8 + frame, 2:6] = value
            if value == 1:
                mask[12:, 12:] = 2
            file = root / f"Annotations/480p/{video}/{frame:05}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(file)
    (root / lists).mkdir(parents=True)
    return root


def test_videos_of_davis_2017(tmp_path: Path) -> None:
    root = davis(tmp_path)
    (root / "ImageSets/2017/train.txt").write_text("bear\nbus\n")
    (root / "ImageSets/2017/val.txt").write_text("camel\n")
    data = Davis(CPU, path=str(root), size=SIDE)
    assert (data.train_images, data.test_images, data.labelled) == (4, 2, False)
    objects, classes = data.segmented("test", torch.arange(2))
    assert [(objects[1] == i).sum().item() for i in (1, 2)] == [20, 16]
    assert classes.unique().tolist() == [0, 1]
    (root / "ImageSets/2017/val.txt").write_text("camel\nbus\n")
    with pytest.raises(UserError, match=r"video bus is in train.txt and in val.txt"):
        Davis(CPU, path=str(root), size=SIDE)


def test_videos_of_davis_2016(tmp_path: Path) -> None:
    root = davis(tmp_path, "ImageSets/480p", value=255)
    for split, videos in (("train", ("bear",)), ("val", ("bus", "camel"))):
        pairs = [
            f"/JPEGImages/480p/{video}/{i:05}.jpg /Annotations/480p/{video}/{i:05}.png"
            for video in videos
            for i in range(2)
        ]
        (root / f"ImageSets/480p/{split}.txt").write_text("\n".join(pairs) + "\n")
    data = Davis(CPU, path=str(root), size=SIDE)
    assert (data.train_images, data.test_images) == (2, 4)
    objects, _ = data.segmented("test", torch.arange(4))
    assert objects.unique().tolist() == [0, 1]  # not void
    assert (objects[1] == 1).sum() == 20
    with pytest.raises(Misfit, match=r"data.test: .*test-dev.txt does not exist; there is: train, val"):
        Davis(CPU, path=str(root), size=SIDE, test="test-dev")
    with pytest.raises(UserError, match=r"no training split"):
        Davis(CPU, path=str(root), size=SIDE, train=None).annotated("train", torch.arange(1))
