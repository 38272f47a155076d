"""Labels as people have them: in tables beside the images, in published layouts, by folders of videos."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from test_data_found import grow, passed, picture, total
from test_data_found import opened as opened_resident

from dino_lab.cli.app import main
from dino_lab.components.data._class_labels import label_of, numbered
from dino_lab.components.data._storage import never_resident
from dino_lab.components.data.parquet import Parquet
from dino_lab.errors import Misfit, UserError

DOGS = ["beagle", "terrier", "beagle", "pug", "terrier", "beagle", "pug", "terrier"]


def opened(root: Path, **given: object) -> Any:
    """Data whose images can be named: they are not decoded at once."""
    with never_resident():
        return opened_resident(root, **given)


def labels_by_name(data: Any) -> dict[str, str]:
    """Class names by the file names of both splits."""
    found = {}
    for split in ("train", "test"):
        source = data.storage(split).source
        found |= {
            Path(source.name(row)).name: data.class_names[label]
            for row, label in enumerate(data.labels(split).tolist())
        }
    return found


def names_of(data: Any, split: str) -> set[str]:
    """Paths of a split's images below the folder of the data."""
    source = data.storage(split).source
    return {source.name(row) for row in range(len(source.labels))}


def dogs(root: Path) -> Path:
    return grow(root / "dogs", len(DOGS))


def table(**given: Any) -> dict[str, Any]:
    return {"file": "labels.csv", "image": "id", "label": "breed", **given}


def write_csv(file: Path, rows: list[tuple[object, ...]], head: str = "id,breed") -> None:
    file.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


ROWS = [{"id": f"{i:03}.png", "breed": breed, "age": i} for i, breed in enumerate(DOGS)]


@pytest.mark.parametrize("kind", ["csv", "semicolons", "tabs", "json", "jsonl", "parquet", "stems"])
def test_tables_of_every_kind(tmp_path: Path, kind: str) -> None:
    root = dogs(tmp_path)
    suffix = {"semicolons": "csv", "tabs": "tsv", "stems": "csv"}.get(kind, kind)
    file = root / f"labels.{suffix}"
    sign = {"semicolons": ";", "tabs": "\t"}.get(kind, ",")
    if kind == "json":
        file.write_text(json.dumps(ROWS))
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n\n" for row in ROWS))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file)
    else:
        lines = [sign.join(map(str, row.values())) for row in ROWS]
        if kind == "stems":
            lines = [line.replace(".png", "") for line in lines]
        file.write_text("\ufeff" + "\r\n".join([sign.join(ROWS[0]), *lines]))
    data = opened(root, labels=table(file=file.name))
    assert data.class_names == ("beagle", "pug", "terrier")
    assert labels_by_name(data) == {f"{i:03}.png": breed for i, breed in enumerate(DOGS)}
    assert passed(data) == {}


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    root = dogs(tmp_path)
    write_csv(
        root / "labels.csv", [(f"{i:03}", label) for i, label in enumerate([10, 9, 10, 2, 9, 2, 10, 9])]
    )
    data = opened(root, labels=table())
    assert data.class_names == ("2", "9", "10")
    assert labels_by_name(data)["000.png"] == "10"


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (3, 3),
        (3.0, 3),
        (np.int64(3).item(), 3),
        (True, 1),
        (" cat ", "cat"),
        (["cat"], "cat"),
        (-1, None),
        ("-1", None),
        ("", None),
        (None, None),
        (float("nan"), None),
        ([], None),
    ],
)
def test_what_a_cell_says(value: Any, label: Any) -> None:
    assert label_of(value) == label


def test_numbering() -> None:
    numbers, names = numbered([["10", "9"], ["-3", "9"]])
    assert names == ("9", "10", "-3")  # those that only the second has come last
    assert [its.tolist() for its in numbers] == [[1, 0], [2, 0]]
    assert numbered([["07", "7", "10"]])[1] == ("07", "10", "7")  # two labels, so that all are text
    with pytest.raises(ValueError, match="float is no label"):
        label_of(0.5)


def test_hidden_labels_and_what_is_missing_are_counted(tmp_path: Path) -> None:
    root = dogs(tmp_path)
    rows = [(0, "a"), (1, "b"), (2, "a"), (3, ""), (4, -1), (5, "b"), ("gone", "a"), (5, "b")]
    write_csv(root / "labels.csv", [(f"{i:03}" if isinstance(i, int) else i, label) for i, label in rows])
    data = opened(root, labels=table())
    assert passed(data) == {
        "image whose label is hidden (empty or -1)": 2,
        "image without a row in the table of labels": 2,
        "row of the table of labels whose image is not there": 1,
    }
    assert total(data) == 4
    assert "images without labels are left out; labels: none trains on them" in " ".join(data.notes)


def test_several_labels(tmp_path: Path) -> None:
    root = dogs(tmp_path)
    (root / "labels.json").write_text(
        json.dumps([{"id": f"{i:03}", "breed": [breed, "dog"][: 1 + i % 2]} for i, breed in enumerate(DOGS)])
    )
    with pytest.raises(UserError, match=r"labels.json: row 2: 001.png has 2 labels, .*several: first"):
        opened(root, labels=table(file="labels.json"))
    data = opened(root, labels=table(file="labels.json", several="first"))
    assert labels_by_name(data) == {f"{i:03}.png": breed for i, breed in enumerate(DOGS)}
    assert "4 images have several labels, of which the first is taken" in data.notes
    write_csv(root / "labels.csv", [("000", "a"), ("000", "b"), ("001", "b")])
    with pytest.raises(UserError, match=r"row 2: 000\.png has another label than in an earlier row"):
        opened(root, labels=table())


def test_splits_by_a_column(tmp_path: Path) -> None:
    root = dogs(tmp_path)
    splits = ["train"] * 4 + ["valid"] * 3 + ["extra"]
    rows = [(f"{i:03}.png", breed, splits[i]) for i, breed in enumerate(DOGS)]
    write_csv(root / "labels.csv", rows, "id,breed,part")
    data = opened(root, labels=table(split="part"), test_fraction=None)
    assert (data.train_images, data.test_images) == (4, 3)
    assert passed(data) == {"image of a split that is neither data.train nor data.test": 1}
    assert "there is no split 'test', so 'valid' is the test split" in data.notes
    with pytest.raises(Misfit, match="leave out one of the two"):
        opened(root, labels=table(split="part"))


def test_splits_by_folders_with_one_table_or_a_table_each(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for split, first in (("train", 0), ("test", 6)):
        grow(root / split, 6, first)
    whole = [(f"{split}/{i:03}.png", "ab"[i % 2]) for split in ("train", "test") for i in range(6)]
    write_csv(root / "labels.csv", whole)
    data = opened(root, labels=table(), test_fraction=None)
    assert (data.train_images, data.test_images, data.class_names) == (6, 6, ("a", "b"))
    (root / "labels.csv").unlink()
    for split in ("train", "test"):
        write_csv(root / split / "labels.csv", [(f"{i:03}.png", "ab"[i % 2]) for i in range(6)])
    each = opened(root, labels=table(), test_fraction=None)
    assert each.labels("test").tolist() == data.labels("test").tolist() == [0, 1] * 3
    assert passed(each) == {}


@pytest.mark.parametrize(
    ("given", "text", "message"),
    [
        ({"file": "other.csv"}, "", r"data.labels.file: .*other.csv is not there"),
        ({"label": "race"}, "", r"labels.csv has no column 'race'; there is: id, breed$"),
        ({}, "id,breed\n000,a,b\n", r"labels.csv:2: 3 values, and the first line names 2 columns"),
        ({}, "id,breed\n,a\n", r"labels.csv: row 1: names no image"),
        ({}, "id,breed,breed\n", r"labels.csv has two columns 'breed'"),
        ({"file": "l.json"}, "{", r"l.json: no JSON"),
        ({"file": "l.json"}, "{}", r"l.json: should be a list of mappings"),
        ({"file": "l.jsonl"}, "{}\n3", r"l.jsonl:2: should be a mapping"),
        ({"file": "l.parquet"}, "x", r"l.parquet: not a whole Parquet file"),
        ({}, b"id,breed\n\xff,a", r"labels.csv: not UTF-8 text"),
        ({"file": "l.json"}, '[{"id": "000", "breed": 0.5}]', r"l.json: row 1: .*float is no label"),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, given: dict[str, Any], text: str | bytes, message: str
) -> None:
    root = dogs(tmp_path)
    write_csv(root / "labels.csv", [("000", "a"), ("001", "b")])
    if text:
        content = text if isinstance(text, bytes) else text.encode()
        (root / str(given.get("file", "labels.csv"))).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        opened(root, labels=table(**given))
    assert "\n" not in str(error.value)


def test_mistakes_in_the_mapping_are_told_one_by_one(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = "data={name: image_folder, path: x, size: 8, labels: {file: x.csv, imag: id, label: breed}}"
    assert main(["validate", str(tiny), "--set", given]) == 2
    lines = [line.partition("data.")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "labels.image: required, but not given"
    assert lines[1].startswith("labels.imag: unknown key; did you mean 'image'?")
    assert len(lines) == 2


def test_a_name_of_two_images_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "data"
    grow(root / "x", 2)
    grow(root / "y", 2, 5)
    write_csv(root / "labels.csv", [("000.png", "a"), ("x/001.png", "b")])
    with pytest.raises(UserError, match=r"row 1: several images are called 000\.png; the path"):
        opened(root, labels=table())
    write_csv(root / "labels.csv", [(f"{f}/{i:03}", "ab"[i]) for f in "xy" for i in range(2)])
    assert total(opened(root, labels=table(), test_fraction=0.5)) == 4


def test_labels_that_name_no_classes_are_refused(tmp_path: Path) -> None:
    root = grow(tmp_path / "data", 20)
    rows = [(f"{i:03}", f"a photograph of {i} dogs") for i in range(20)]
    write_csv(root / "labels.csv", rows)
    with pytest.raises(UserError, match="all 20 labels are different, so that they name no classes"):
        opened(root, labels=table())
    write_csv(root / "labels.csv", [(name, f"dog {i // 4}") for i, (name, _) in enumerate(rows)])
    assert opened(root, labels=table()).classes == 5


def test_names_in_another_form_of_unicode(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for i, name in enumerate(("caf\u00e9", "cafe\u0301s", "tea", "milk")):
        picture(i).save(root / f"{name}.png")
    rows = [("cafe\u0301.png", "a"), ("caf\u00e9s", "b"), ("tea", "a"), ("milk.png", "b")]
    write_csv(root / "labels.csv", rows)
    data = opened(root, labels=table(), test_fraction=0.6)
    assert (total(data), passed(data)) == (4, {})


def test_what_says_no_split_is_refused(tmp_path: Path) -> None:
    root = dogs(tmp_path)
    write_csv(root / "labels.csv", [("000", "a"), ("001", "b")])
    with pytest.raises(Misfit, match=r"nothing says what is tested: set data.test_fraction: 0.1"):
        opened(root, labels=table(), test_fraction=None)


# ---- groups


def test_images_of_a_column_stay_together(tmp_path: Path) -> None:
    root = grow(tmp_path / "scans", 60)
    rows = [(f"{i:03}", "ab"[i % 2], f"patient {i // 4}") for i in range(60)]
    write_csv(root / "labels.csv", rows, "id,breed,who")
    data = opened(root, labels=table(), group="who", test_fraction=0.3)
    split = {s: {int(name[:3]) // 4 for name in names_of(data, s)} for s in ("train", "test")}
    assert split["train"] | split["test"] == set(range(15))
    assert not split["train"] & split["test"]
    assert split["test"]


@pytest.mark.parametrize("labels", ["folders", "none"])
def test_frames_of_a_video_stay_together(tmp_path: Path, labels: str) -> None:
    root = tmp_path / "videos"
    for i in range(24):
        grow(root / "ab"[i % 2] / f"video{i}", 3, 3 * i)
    data = opened(root, labels=labels, group="folder", test_fraction=0.3)
    assert data.classes == (2 if labels == "folders" else 1)
    videos = {s: {name.split("/")[-2] for name in names_of(data, s)} for s in ("train", "test")}
    assert len(videos["train"]) + len(videos["test"]) == 24
    assert not videos["train"] & videos["test"]
    assert len(videos["test"]) >= 2


def test_groups_that_divide_nothing_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "videos"
    grow(root / "one", 4)
    with pytest.raises(Misfit, match=r"data.group: all images are of one group \(.*one.*\)"):
        opened(root, labels="none", group="folder")
    grow(root / "two", 4, 10)
    with pytest.raises(Misfit, match=r"data.group: who would be a column of a table"):
        opened(root, labels="none", group="who")
    with pytest.raises(Misfit, match=r"data.group: data.test_fraction divides the images by it"):
        opened(root, group="folder", test_fraction=None)
    data = opened(root, labels="none", group="folder", test_fraction=0.001)
    assert (data.train_images, data.test_images) == (4, 4)


# ---- published layouts


def test_tiny_imagenet_as_it_is_unpacked(tmp_path: Path) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for i, wnid in enumerate(("n02", "n01")):
        grow(root / "train" / wnid / "images", 3, 10 * i)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n02_0.JPEG\t0\t0\t63\t63\n")
    grow(root / "val" / "images", 4, 50)
    grow(root / "test" / "images", 4, 60)
    lines = [f"{i:03}.png\t{wnid}\t0\t32\t44\t62" for i, wnid in enumerate(("n01", "n02", "n02", "n01"))]
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (root / "wnids.txt").write_text("n02\nn01\n")
    data = opened(root, test_fraction=None)
    assert data.class_names == ("n01", "n02")
    assert data.labels("train").tolist() == [0] * 3 + [1] * 3
    by_name = dict(zip(sorted(names_of(data, "test")), [0, 1, 1, 0], strict=True))
    source = data.storage("test").source
    assert {source.name(i): label for i, label in enumerate(data.labels("test").tolist())} == by_name
    assert "the folder 'test' has no labels, so 'val' is the test split" in data.notes
    assert passed(data)["folder that is neither data.train nor data.test"] == 1
    (root / "val" / "val_annotations.txt").write_text("000.png n01\n")
    with pytest.raises(UserError, match=r"val_annotations.txt:1: should be an image, its class and a box"):
        opened(root, test_fraction=None)


def imagenet(root: Path) -> Path:
    """Two classes, whose numbers in the devkit are in another order than their names."""
    for i, wnid in enumerate(("n01", "n02")):
        grow(root / "train" / wnid, 3, 10 * i)
    grow(root / "val", 4, 50)
    for i, file in enumerate(sorted((root / "val").iterdir()), 1):
        file.rename(file.with_name(f"ILSVRC2012_val_{i:08}.JPEG"))
    return root


def devkit(folder: Path, truth: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = [("ILSVRC2012_ID", "u2"), ("WNID", "O"), ("num_children", "u2")]
    savemat(folder / "meta.mat", {"synsets": np.array([(1, "n02", 0), (2, "n01", 0)], dtype=kind)})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)


@pytest.mark.parametrize("folder", [".", "ILSVRC2012_devkit_t12/data"])
def test_imagenet_with_its_devkit(tmp_path: Path, folder: str) -> None:
    root = imagenet(tmp_path / "imagenet")
    with pytest.raises(UserError, match=r"there is no ILSVRC2012_validation_ground_truth.txt; unpack"):
        opened(root, test_fraction=None)
    devkit(root / folder, "1\n2\n2\n1\n")
    data = opened(root, test_fraction=None)
    labels = {data.storage("test").source.name(i): its for i, its in enumerate(data.labels("test").tolist())}
    assert [labels[name] for name in sorted(labels)] == [1, 0, 0, 1]
    assert data.class_names == ("n01", "n02")
    devkit(root / folder, "1\n2\n3\n1\n")
    with pytest.raises(UserError, match=r"ground_truth.txt:3: 3 is no class of meta.mat"):
        opened(root, test_fraction=None)
    (root / folder / "meta.mat").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"meta.mat: not the devkit's table of classes"):
        opened(root, test_fraction=None)


# ---- Parquet


def rows_of(root: Path, train: Any, test: Any, names: list[str] | None = None) -> None:
    """A Parquet file for each split, with one image for each label; image i is of brightness i."""
    for split, labels in (("train", train), ("test", test)):
        images = []
        for i in range(len(labels)):
            content = io.BytesIO()
            Image.new("RGB", (8, 8), (i, i, i)).save(content, "PNG")
            images.append({"bytes": content.getvalue(), "path": None})
        rows = pa.table({"image": images, "label": labels})
        if names is not None:
            feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
            info = json.dumps({"info": {"features": {"label": feature}}})
            rows = rows.replace_schema_metadata({"huggingface": info})
        pq.write_table(rows, root / f"{split}.parquet")


def parquet(root: Path, **given: Any) -> Any:
    return Parquet(torch.device("cpu"), path=str(root), size=8, **given)


@pytest.mark.parametrize("encoded", [False, True])
def test_text_labels_of_parquet_files(tmp_path: Path, encoded: bool) -> None:
    train, test = (pa.array(labels) for labels in (["pug", "beagle", "pug"], ["wolf", "beagle"]))
    if encoded:
        train, test = train.dictionary_encode(), test.dictionary_encode()
    rows_of(tmp_path, train, test)
    data = parquet(tmp_path)
    assert data.class_names == ("beagle", "pug", "wolf")
    assert data.labels("train").tolist() == [1, 0, 1]
    assert data.labels("test").tolist() == [2, 0]


@pytest.mark.parametrize("labels", [[5, -1, 3, None], ["5", "-1", "3", None]])
def test_hidden_labels_of_parquet_files(tmp_path: Path, labels: list[Any]) -> None:
    rows_of(tmp_path, labels, labels[:1] + labels[2:3])
    with pytest.raises(UserError, match=r"train.parquet: row \d: label is missing; data.hidden_labels: skip"):
        parquet(tmp_path)
    data = parquet(tmp_path, hidden_labels="skip")
    assert (data.class_names, data.labels("train").tolist()) == (("3", "5"), [1, 0])
    images, _ = next(data.bank(2))
    assert images[:, 0, 0, 0].tolist() == [0, 2]  # the rows that stay keep their images
    assert passed(data) == {"row whose label is hidden (missing or -1)": 2}
    rows_of(tmp_path, labels, labels[1:2])
    with pytest.raises(UserError, match=r"test.parquet: all labels are hidden"):
        parquet(tmp_path, hidden_labels="skip")


def test_lists_of_labels_of_parquet_files(tmp_path: Path) -> None:
    rows_of(tmp_path, [[0], [1, 0], [1]], [[1], [0]], ["cat", "dog"])
    with pytest.raises(UserError, match=r"train.parquet: row 1: 2 labels, .*data.several_labels: first"):
        parquet(tmp_path)
    data = parquet(tmp_path, several_labels="first")
    assert data.class_names == ("cat", "dog")
    assert (data.labels("train").tolist(), data.labels("test").tolist()) == ([0, 1, 1], [1, 0])
    assert "1 images have several labels, of which the first is taken" in data.notes
