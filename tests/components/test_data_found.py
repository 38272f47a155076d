"""Nothing in a folder of images is left out without a word: by content, links, names, classes, splits."""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.parquet import Parquet
from dino_lab.errors import UserError
from dino_lab.imaging.files import list_images
from dino_lab.registry import registry

CPU = torch.device("cpu")


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(value).integers(0, 255, (12, 10, 3), dtype=np.uint8))


def grow(folder: Path, images: int, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(images):
        picture(first + i).save(folder / f"{i:03}.png")
    return folder


def opened(root: Path, **given: object) -> ImageFolder:
    keys = {"name": "image_folder", "path": str(root), "test_fraction": 0.25, "size": 8, **given}
    params = registry.find("data", "image_folder").params.model_validate(keys)
    data = registry.build("data", params, CPU)
    assert isinstance(data, ImageFolder)
    return data


def total(data: ImageFolder) -> int:
    return data.train_images + data.test_images


def passed(data: ImageFolder) -> dict[str, int]:
    return {its.reason: its.count for its in data.found().passed_over}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 images in each of two classes."""
    grow(tmp_path / "data" / "a", 20)
    grow(tmp_path / "data" / "b", 20, 100)
    return tmp_path / "data"


# ---- which files


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.avif", "AVIF"),
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("x.jp2", "JPEG2000"),
        ("x.TGA", "TGA"),
        ("x", "JPEG"),
        ("x", "PPM"),
        ("x", "BMP"),
        ("x", "TIFF"),
        ("frame.0001", "PNG"),
        ("x.jpg_large", "JPEG"),
    ],
)
def test_a_file_is_an_image_by_its_content(root: Path, name: str, kind: str) -> None:
    picture(500).save(root / "a" / name, kind)
    data = opened(root)
    assert total(data) == 41
    assert not data.found().passed_over


def test_what_is_no_image_is_counted_by_suffix(root: Path) -> None:
    (root / "labels.csv").write_text("000.png,a\n")
    for i in range(5):
        (root / "a" / f"{i}.txt").write_text("no image")
    (root / "a" / "README").write_text("BM is how a bitmap begins, and P5 how a graymap does")
    (root / "b" / "raw.nef").write_bytes(b"II*\0" + bytes(100))  # as a camera's raw file begins
    picture(0).save(root / "b" / "000.png.bak", "PNG")
    picture(0).save(root / "loose.png")
    data = opened(root)
    assert total(data) == 40
    assert passed(data) == {
        "no image (.txt)": 5,
        "no image (.csv)": 1,
        "no image (no suffix)": 1,
        "no image (.nef)": 1,
        "backup or unfinished copy": 1,
        "image in no folder of a class": 1,
    }
    what, over = data.found().lines()
    assert what.startswith("data: train ")
    assert what.endswith(" of 2 classes (a, b)")
    assert over.startswith("passed over: 5 no image (.txt): a/0.txt, a/1.txt, a/2.txt, ...; ")
    assert json.loads(json.dumps(asdict(data.found())))["passed_over"][0]["count"] == 5


def test_hidden_system_and_empty_folders_are_no_classes(root: Path) -> None:
    (root / "__MACOSX" / "a").mkdir(parents=True)
    (root / "__MACOSX" / "a" / "._000.png").write_bytes(b"\0\5\x16\7")
    (root / "a" / "._001.png").write_bytes(b"\0\5\x16\7")
    grow(root / "a" / ".ipynb_checkpoints", 2)
    grow(root / "a" / "@eaDir", 3)
    (root / "empty").mkdir()
    (root / "only_text").mkdir()
    (root / "only_text" / "notes.md").write_text("no image")
    data = opened(root)
    assert (data.class_names, data.classes, total(data)) == (("a", "b"), 2, 40)
    assert passed(data) == {
        "hidden": 2,
        "folder of the operating system": 2,
        "folder without an image": 2,
        "no image (.md)": 1,
    }


def test_other_splits_and_other_parquet_files_are_named(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    grow(tmp_path / "train" / "a", 3)
    grow(tmp_path / "test" / "a", 2)
    grow(tmp_path / "val" / "a", 2)
    [found] = opened(tmp_path, test_fraction=None).found().passed_over
    assert str(found) == "1 folder that is neither data.train nor data.test: val"
    content = (tmp_path / "train" / "a" / "000.png").read_bytes()
    for name in ("train", "test", "validation"):
        table = {"image": [{"bytes": content}] * 2, "label": [0, 1]}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    [found] = Parquet(CPU, path=str(tmp_path), size=8).found().passed_over
    assert found.examples == ("validation.parquet",)


def test_a_split_without_images_says_what_lies_there(root: Path) -> None:
    (root / "empty" / "c").mkdir(parents=True)
    (root / "empty" / "c" / "scan.dcm").write_bytes(bytes(200))
    with pytest.raises(
        UserError, match=r"training split holds no image; .*1 no image \(\.dcm\): c/scan\.dcm"
    ):
        opened(root / "empty")


# ---- links


def test_links_to_files_and_folders_are_followed_once(root: Path, tmp_path: Path) -> None:
    store = grow(tmp_path / "store" / "more", 20, 200)
    grow(tmp_path / "store" / "c", 20, 300)
    (root / "b" / "more").symlink_to(store)
    (root / "b" / "again").symlink_to(store)
    (root / "c").symlink_to(tmp_path / "store" / "c")
    (root / "a" / "0real").mkdir()
    (root / "a" / "0real" / "x.png").symlink_to(root / "a" / "000.png")
    (root / "a" / "0real" / "back").symlink_to(root / "a")
    data = opened(root)
    assert total(data) == 40 + 20 + 20 + 1
    assert passed(data) == {"link to a folder that is read already": 2}


def test_a_folder_is_read_where_it_lies(tmp_path: Path) -> None:
    real = grow(tmp_path / "real", 2)
    (tmp_path / "0link").symlink_to(real)
    assert list_images(tmp_path).images == [real / "000.png", real / "001.png"]


def test_dead_links_are_unreadable_images(root: Path) -> None:
    for i in range(7):
        (root / "a" / f"annex{i}.png").symlink_to(f"/nowhere/annex/{i}")
    line = r"annex\d\.png: unreadable image \(a link to /nowhere/annex/\d, which is not there\); fetch it.*; \d of"
    with pytest.raises(UserError, match=line):
        opened(root)
    data = opened(root, on_bad_image="skip")
    assert (total(data), passed(data)) == (40, {"unreadable, left out": 7})


def test_a_dead_link_of_a_class_is_an_error(root: Path) -> None:
    (root / "c").symlink_to("/nowhere/c")
    with pytest.raises(UserError, match="c: a link to /nowhere/c, which is not there"):
        opened(root)
    assert passed(opened(root, on_bad_image="skip")) == {"link that leads nowhere": 1}
    (root / "c").unlink()
    (root / "notes.txt").symlink_to("/nowhere/notes.txt")
    assert passed(opened(root)) == {"link that leads nowhere": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs.*git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.png\n", "git-annex.*git annex get"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC"),
    ],
)
def test_what_lies_there_instead_of_an_image_is_said(root: Path, content: bytes, reason: str) -> None:
    (root / "a" / "x.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"a/x\.png: unreadable image \(.*{reason}"):
        opened(root)


def test_a_folder_that_cannot_be_read_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(folder: Path) -> object:
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"data/b: cannot be read \(Permission denied\)"):
        opened(root)


# ---- names


def test_names_that_are_no_utf8(root: Path) -> None:
    os.rename(root / "a" / "000.png", os.fsencode(root / "a") + b"/caf\xe9.png")
    os.rename(root / "b", os.fsencode(root) + b"/caf\xe9")
    data = opened(root)
    assert (total(data), data.class_names) == (40, ("a", r"caf\udce9"))
    "\n".join(data.found().lines()).encode()
    bad = os.fsencode(root / "a") + b"/caf\xe9.png"
    with open(bad, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match=r"caf\\udce9\.png: unreadable image"):
        opened(root)


def test_names_cannot_write_on_the_terminal(root: Path) -> None:
    (root / "a" / "x\x1b[2J\nOK.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\\x1b\[2J\\nOK\.png: unreadable") as error:
        opened(root)
    assert str(error.value).isprintable()
    (root / "a" / "x\x1b[2J\nOK.png").unlink()
    (root / "a" / "y\x1b.txt").write_text("")
    (root / "b").rename(root / "b\x1b]0;title\a")
    data = opened(root)
    assert all(line.isprintable() for line in data.found().lines())
    assert data.class_names[1].isprintable()


def test_one_name_in_two_forms_of_unicode_is_one_class(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "épée") for form in ("NFC", "NFD"))
    grow(tmp_path / "train" / nfc, 3)
    grow(tmp_path / "train" / "b", 3)
    grow(tmp_path / "test" / nfd, 2)
    data = opened(tmp_path, test_fraction=None)
    assert data.class_names == ("b", nfc)
    assert data.labels("test").tolist() == [1, 1]
    grow(tmp_path / "train" / nfd, 1)
    with pytest.raises(UserError, match="another folder has this name in another form of Unicode"):
        opened(tmp_path, test_fraction=None)


@pytest.mark.parametrize("path", ["/" + "x" * 300, "~nobody-of-this-name/x"])
def test_paths_that_cannot_be_looked_at(path: str) -> None:
    for component in (ImageFolder, Parquet):
        with pytest.raises(UserError, match=r"^data\.path: [^\n]* cannot be read"):
            component(CPU, path=path, size=8)


# ---- classes and splits


@pytest.mark.parametrize(
    ("names", "right"),
    [
        (("train", "val"), "leave out test_fraction, and set data.train: train, data.test: val"),
        (("Training", "Testing", "unlabeled"), "data.train: Training, data.test: Testing"),
        (("train2017", "val2017"), "data.train: train2017, data.test: val2017"),
    ],
)
def test_splits_are_not_classes(tmp_path: Path, names: tuple[str, ...], right: str) -> None:
    for name in names:
        grow(tmp_path / name / "a", 8)
        grow(tmp_path / name / "b", 8, 50)
    with pytest.raises(UserError, match=f"are splits, not classes .*{right}"):
        opened(tmp_path)


def test_a_split_that_holds_splits(tmp_path: Path) -> None:
    for name in ("train", "test"):
        grow(tmp_path / "train" / name / "a", 4)
    with pytest.raises(
        UserError, match=rf"data\.train: .* are splits.*; set data\.path: {tmp_path / 'train'}"
    ):
        opened(tmp_path, test_fraction=None)
    with pytest.raises(UserError, match=rf"data\.test_fraction: .*; set data\.path: {tmp_path / 'train'}"):
        opened(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for i, name in enumerate(("bus", "car", "train")):
        grow(tmp_path / name, 10, 20 * i)
    assert opened(tmp_path).class_names == ("bus", "car", "train")


def test_classes_one_level_further_down_are_told(tmp_path: Path) -> None:
    grow(tmp_path / "data" / "a", 10)
    grow(tmp_path / "data" / "b", 10, 50)
    one, level = opened(tmp_path).found().notes
    assert one.startswith("2 folders below ")
    assert one.endswith("/data are one class; with that as data.path each would be a class")
    assert level.startswith("all images are of one class")
    assert opened(tmp_path / "data").found().notes == ()


def test_a_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    for name in ("a", "b"):
        grow(tmp_path / name, 20)
    for i in range(20):
        grow(tmp_path / f"rare{i:02}", 1, i)
    data = opened(tmp_path)
    assert total(data) == 60
    assert data.labels("train").unique().tolist() == list(range(22))
    assert data.labels("test").unique().tolist() == [0, 1]


def test_classes_that_training_lacks_come_last_and_are_told(tmp_path: Path) -> None:
    for name in ("m", "z"):
        grow(tmp_path / "train" / name, 3)
    for name in ("a", "m"):
        grow(tmp_path / "test" / name, 2)
    (tmp_path / "train" / "a").mkdir()  # empty, as a rare class is after sampling
    data = opened(tmp_path, test_fraction=None)
    assert data.class_names == ("m", "z", "a")
    assert data.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(data.labels("test").tolist()) == [0, 0, 2, 2]
    [note] = data.found().notes
    assert note.startswith("2 of 4 test images are of classes that no training image has (a)")
