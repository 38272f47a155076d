"""Data from files: the order of batches, both storages, decoding, and what is said about bad input."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dino_lab.components.data import _storage
from dino_lab.components.data._labelled import FileOptions, training_order
from dino_lab.components.data._rows import Columns, Rows
from dino_lab.components.data._traits import Traits
from dino_lab.components.data.image_folder import ImageFolder
from dino_lab.components.data.parquet import Parquet
from dino_lab.components.data.torchvision import Torchvision
from dino_lab.errors import UserError
from dino_lab.imaging.decode import BadImage, decode
from dino_lab.registry import registry

CPU = torch.device("cpu")


def encoded(value: int, kind: str = "PNG", shape: tuple[int, int] = (12, 10)) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 255, (*shape, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write(file: Path, images: list[bytes | None], labels: list[Any], names: list[str] | None = None) -> None:
    table = pa.table({"image": [{"bytes": image, "path": "x.png"} for image in images], "label": labels})
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, file, row_group_size=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "train-0.parquet", [encoded(i) for i in range(7)], [i % 3 for i in range(7)])
    write(tmp_path / "train-1.parquet", [encoded(i) for i in range(7, 11)], [i % 3 for i in range(7, 11)])
    write(tmp_path / "test.parquet", [encoded(i) for i in range(20, 25)], [0, 1, 2, 0, 1])
    return tmp_path


def streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_storage, "RESIDENT_SHARE", 0.0)


# ---- order


def test_order_covers_each_epoch_once_and_drops_the_incomplete_batch() -> None:
    batches = list(itertools.islice(training_order(11, 4, 0, 0), 6))
    for epoch in (batches[0:2], batches[2:4], batches[4:6]):
        seen = torch.cat(epoch)
        assert len(seen) == 8
        assert len(seen.unique()) == 8
        assert int(seen.max()) < 11
    assert not torch.equal(batches[0], batches[2])


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = next(training_order(1000, 100, 3, 0))
    torch.manual_seed(99)
    assert torch.equal(first, next(training_order(1000, 100, 3, 0)))
    assert not torch.equal(first, next(training_order(1000, 100, 4, 0)))
    # (seed 3, epoch 1) must not be (seed 4, epoch 0)
    assert not torch.equal(next(training_order(1000, 100, 3, 10)), next(training_order(1000, 100, 4, 0)))


@pytest.mark.parametrize("start", [1, 2, 3, 7])
def test_start_continues_the_same_order(start: int) -> None:
    whole = list(itertools.islice(training_order(11, 4, 5, 0), start + 3))
    for a, b in zip(whole[start:], training_order(11, 4, 5, start), strict=False):
        assert torch.equal(a, b)


# ---- storages


def test_both_storages_give_the_same_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resident = Parquet(CPU, path=str(folder), size=8)
    streamed(monkeypatch)
    stream = Parquet(CPU, path=str(folder), size=8)
    assert isinstance(resident._train, _storage.Resident)
    assert isinstance(stream._train, _storage.Streamed)
    state = torch.get_rng_state()
    for name, arguments in (("train", (4, 7, 3)), ("bank", (4,)), ("test", (2,))):
        pairs = zip(getattr(resident, name)(*arguments), getattr(stream, name)(*arguments), strict=False)
        count = 0
        for (a, a_labels), (b, b_labels) in itertools.islice(pairs, 5):
            assert torch.equal(a, b)
            assert torch.equal(a_labels, b_labels)
            assert a.dtype == b.dtype == torch.uint8
            assert a.shape[1:] == (3, 8, 8)
            assert a_labels.dtype == b_labels.dtype == torch.int64
            count += len(a)
        assert count == {"train": 20, "bank": 11, "test": 5}[name]
    assert torch.equal(state, torch.get_rng_state())


def test_images_keep_their_labels(folder: Path) -> None:
    data = Parquet(CPU, path=str(folder), size=10)
    images, labels = next(data.bank(11))
    for i in range(11):
        assert np.array_equal(images[i].numpy(), decode(Image.open(io.BytesIO(encoded(i))), 10))
    assert labels.tolist() == [i % 3 for i in range(11)]
    assert (data.classes, data.train_images, data.test_images, data.channels, data.size) == (3, 11, 5, 3, 10)
    known = {images[i].numpy().tobytes(): int(labels[i]) for i in range(11)}
    for some, its in itertools.islice(data.train(5, 0, 0), 6):
        assert [known[image.numpy().tobytes()] for image in some] == its.tolist()


def test_started_stream_decodes_nothing_it_skips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    streamed(monkeypatch)
    first = next(training_order(11, 4, 0, 0))
    images = [encoded(i) for i in range(11)]
    for i in first.tolist():
        images[i] = b"broken"
    for file in folder.glob("train*"):
        file.unlink()
    write(folder / "train.parquet", list(images), [i % 3 for i in range(11)])
    monkeypatch.setattr(_storage, "_look_at_some", lambda *_: Traits())  # as of images outside the sample
    data = Parquet(CPU, path=str(folder), size=8)
    assert len(next(data.train(4, 0, 1))[0]) == 4
    with pytest.raises(UserError, match=r"train\.parquet: row \d+: unreadable image"):
        next(data.train(4, 0, 0))


def test_sources_survive_pickling(folder: Path) -> None:
    source = Rows([folder / "train-0.parquet", folder / "train-1.parquet"], Columns("image", "label"))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(np.asarray(copy.open(8)), np.asarray(source.open(8)))
    assert copy.where(8).endswith("train-1.parquet: row 1")


def test_batch_larger_than_the_data(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train\.batch_size: 12 is more than 11"):
        Parquet(CPU, path=str(folder), size=8).train(12, 0, 0)


# ---- bad images


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("damage", ["garbage", "truncated", "empty", "null"])
def test_skip_counts_bad_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damage: str, stream: bool
) -> None:
    if stream:
        streamed(monkeypatch)
    whole = encoded(8, "JPEG", (64, 64))
    bad = {"garbage": b"no image", "truncated": whole[: len(whole) // 2], "empty": b"", "null": None}[damage]
    write(folder / "train-1.parquet", [encoded(7), bad, encoded(9), encoded(10)], [1, 2, 0, 1])
    with caplog.at_level(logging.WARNING, "dino_lab"):
        data = Parquet(CPU, path=str(folder), size=8, options=FileOptions(on_bad_image="skip"))
    assert (data.skipped, data.train_images) == (1, 10)
    (record,) = caplog.records
    assert record.getMessage().startswith("left out 1 of 11 images")
    assert "train-1.parquet: row 1:" in record.getMessage()
    labels = torch.cat([labels for _, labels in data.bank(3)])
    assert labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 1]
    with pytest.raises(UserError, match=r"^[^\n]*train-1\.parquet: row 1: unreadable[^\n]*$"):
        Parquet(CPU, path=str(folder), size=8)


def test_all_images_bad(folder: Path) -> None:
    write(folder / "test.parquet", [b"a", b"b"], [0, 1])
    with pytest.raises(UserError, match="none of 2 images can be read"):
        Parquet(CPU, path=str(folder), size=8, options=FileOptions(on_bad_image="skip"))


# ---- decoding


def reopened(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def test_decode_modes_give_the_colour_meant() -> None:
    red = Image.new("RGB", (6, 6), (200, 10, 20))
    clear = Image.new("LA", (6, 6), (0, 0))
    palette = red.convert("P", palette=Image.Palette.ADAPTIVE)
    sixteen = Image.fromarray(np.full((6, 6), 257 * 90, np.uint16))
    cases = [
        (reopened(palette, "PNG"), (200, 10, 20), 2),
        (reopened(red.convert("CMYK"), "TIFF"), (200, 10, 20), 2),
        (reopened(clear, "PNG"), (255, 255, 255), 0),
        (reopened(Image.new("RGBA", (6, 6), (0, 0, 0, 51)), "PNG"), (204, 204, 204), 1),
        (reopened(sixteen, "PNG"), (90, 90, 90), 0),
        (reopened(Image.new("L", (6, 6), 77), "PNG"), (77, 77, 77), 0),
        (reopened(Image.new("1", (6, 6), 1), "PNG"), (255, 255, 255), 0),
    ]
    for image, colour, tolerance in cases:
        pixels = decode(image, 6).astype(int)
        assert pixels.shape == (3, 6, 6)
        assert np.abs(pixels - np.array(colour)[:, None, None]).max() <= tolerance, (
            image.mode,
            pixels[:, 0, 0],
        )


def test_decode_refuses_floating_point() -> None:
    with pytest.raises(BadImage, match="floating-point"):
        decode(Image.fromarray(np.zeros((6, 6), np.float32)), 6)


def test_decode_turns_by_exif_and_cuts_the_centre() -> None:
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, :8, 0], pixels[:, 8:16, 1], pixels[:, 16:, 2] = 255, 255, 255
    assert (decode(Image.fromarray(pixels), 8)[1, :, 2:-2] == 255).all()
    square = np.zeros((8, 8, 3), np.uint8)
    square[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: what is above comes to the right
    turned = decode(reopened(Image.fromarray(square), "PNG", exif=exif), 8)
    assert (turned[:, :, 4:] == 255).all()
    assert (turned[:, :, :4] == 0).all()


@pytest.mark.parametrize("shape", [(5, 7), (100, 31), (1, 400), (900, 1100)])
def test_decode_is_exactly_size_and_near_plain_resizing(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    pixels = np.stack([x * 255 / shape[1], y * 255 / shape[0], x * 0 + 90], -1).astype(np.uint8)
    image = reopened(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)
    result = decode(image, 16)
    assert result.shape == (3, 16, 16)
    scale = 16 / min(shape)
    resized = Image.fromarray(pixels).resize(
        (max(16, round(shape[1] * scale)), max(16, round(shape[0] * scale))), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 16) // 2, (resized.height - 16) // 2
    plain = np.asarray(resized)[top : top + 16, left : left + 16].transpose(2, 0, 1)
    assert np.abs(result.astype(int) - plain).mean() < 4


# ---- parquet


def test_class_names_and_limit(folder: Path) -> None:
    write(
        folder / "train-0.parquet", [encoded(i) for i in range(7)], [i % 3 for i in range(7)], ["a", "b", "c"]
    )
    data = Parquet(CPU, path=str(folder), size=8, options=FileOptions(limit=6))
    assert data.class_names == ("a", "b", "c")
    assert (data.train_images, data.test_images) == (6, 5)
    assert torch.equal(
        next(data.bank(6))[0],
        next(Parquet(CPU, path=str(folder), size=8, options=FileOptions(limit=6)).bank(6))[0],
    )
    assert Parquet(CPU, path=str(folder), size=8, options=FileOptions(limit=100)).train_images == 11


def test_path_may_be_a_file_or_a_pattern(folder: Path) -> None:
    assert Parquet(CPU, path=str(folder / "train-0.parquet"), size=8).train_images == 7
    assert Parquet(CPU, path=str(folder / "train-*.parquet"), size=8).train_images == 11


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"path": "absent"}, r"data.path: \S*absent does not exist"),
        ({"path": "absent*"}, r"nothing in .* matches absent\*"),
        ({"path": "absent/folder"}, "does not exist"),
        ({"path": "", "test": "val*.parquet"}, r"data\.test: nothing in .* there is: test\.parquet, train-0"),
        ({"path": "", "test": "*.parquet"}, "matches both"),
        ({"path": "", "test": "/x/*"}, "no glob pattern"),
        ({"path": "", "image_column": "picture"}, r"no column 'picture' \(data\.image_column\)"),
        ({"path": "", "label_column": "fine"}, r"no column 'fine' \(data\.label_column\)"),
        ({"path": "", "image_column": "label"}, "column 'label' is int64, not struct"),
    ],
)
def test_parquet_request_errors(folder: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        Parquet(CPU, size=8, **(parameters | {"path": str(folder / parameters["path"])}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, -1], None, r"test\.parquet: row 2: label -1 is not in 0\.\.2"),
        ([0, 7, 1], ["a", "b", "c"], r"test\.parquet: row 1: label 7 is not in 0\.\.2"),
        ([0, -1, 1], ["a", "b", "c"], r"test\.parquet: row 1: label -1 is not in 0\.\.2; .* hidden"),
        (np.array([0, 2**63, 1], np.uint64), None, "a label is more than 64 bits hold"),
        ([0, None, 1], None, r"test\.parquet: row 1: label is missing"),
        (["a", "b", "c"], None, "label column is string, not integers"),
    ],
)
def test_label_errors(folder: Path, labels: list[Any], names: list[str] | None, message: str) -> None:
    write(folder / "train-0.parquet", [encoded(0)] * 3, [0, 1, 2], names)
    write(folder / "test.parquet", [encoded(i) for i in range(3)], labels)
    with pytest.raises(UserError, match=message):
        Parquet(CPU, path=str(folder), size=8)


def test_labels_that_are_ids_are_numbered(folder: Path) -> None:
    """In ascending order, those that only the test split has last, and the names keep them."""
    write(folder / "train-0.parquet", [encoded(i) for i in range(4)], [10**12, 7, 31_012_345, 7])
    write(folder / "train-1.parquet", [encoded(4)], [0])
    write(folder / "test.parquet", [encoded(5), encoded(6), encoded(7)], [31_012_345, 8, 7])
    data = Parquet(CPU, path=str(folder), size=8)
    assert data.class_names == ("0", "7", "31012345", str(10**12), "8")
    assert data.labels("train").tolist() == [3, 1, 2, 1, 0]
    assert data.labels("test").tolist() == [2, 4, 1]
    assert data.classes == 5
    [note] = data.found().notes
    assert note.startswith("1 of 3 test images are of classes that no training image has (8)")


def test_labels_with_names_keep_their_numbers(folder: Path) -> None:
    write(folder / "train-0.parquet", [encoded(0)] * 2, [0, 2], ["a", "b", "c", "d"])
    write(folder / "train-1.parquet", [encoded(0)], [0])
    write(folder / "test.parquet", [encoded(0)] * 2, [2, 3])
    data = Parquet(CPU, path=str(folder), size=8)
    assert (data.labels("train").tolist(), data.labels("test").tolist()) == ([0, 2, 0], [2, 3])
    assert (data.classes, data.class_names) == (4, ("a", "b", "c", "d"))
    assert "(d)" in data.found().notes[0]


@pytest.mark.parametrize("part", ["footer", "pages"])
def test_flipped_bits_of_a_parquet_file_are_one_line(folder: Path, part: str) -> None:
    """Whatever is flipped, the file is read or refused by its name."""
    file = folder / "test.parquet"
    content = file.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    places = np.random.default_rng(0).integers(
        *((start, len(content)) if part == "footer" else (4, start)), 60
    )
    said: list[str] = []
    for place in places.tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            Parquet(CPU, path=str(folder), size=8)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 10
    assert all("test.parquet" in line and "\n" not in line for line in said)


@pytest.mark.parametrize("damage", ["half", "empty", "text", "no rows"])
def test_damaged_parquet_file(folder: Path, damage: str) -> None:
    file = folder / "test.parquet"
    content = file.read_bytes()
    if damage == "no rows":
        pq.write_table(pq.read_table(file).slice(0, 0), file)
    else:
        file.write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(
        UserError, match="no rows" if damage == "no rows" else "not a whole Parquet file"
    ) as error:
        Parquet(CPU, path=str(folder), size=8)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is: no Parquet file"):
        Parquet(CPU, path=str(tmp_path), size=8)


# ---- image folder


def grow(root: Path, images: int = 4, classes: tuple[str, ...] = ("cat", "dog")) -> None:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(images):
            (root / name / f"{i}.PNG").write_bytes(encoded(100 * number + i))
        (root / name / "notes.txt").write_text("no image")


def test_folder_of_splits(tmp_path: Path) -> None:
    grow(tmp_path / "train", 4)
    grow(tmp_path / "val", 2)
    data = ImageFolder(CPU, path=str(tmp_path), size=8, test="val")
    assert (data.class_names, data.train_images, data.test_images) == (("cat", "dog"), 8, 4)
    images, labels = next(data.bank(8))
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert np.array_equal(images[5].numpy(), decode(Image.open(io.BytesIO(encoded(101))), 8))


def test_test_fraction_splits_by_name_and_stays(tmp_path: Path) -> None:
    grow(tmp_path, 100)
    data = ImageFolder(CPU, path=str(tmp_path), size=2, test_fraction=0.3)
    assert data.train_images + data.test_images == 200
    assert 35 <= data.test_images <= 85
    before = {image.numpy().tobytes() for image in next(data.test(200))[0]}
    (tmp_path / "cat" / "0new.png").write_bytes(encoded(999))
    after = ImageFolder(CPU, path=str(tmp_path), size=2, test_fraction=0.3)
    assert before <= {image.numpy().tobytes() for image in next(after.test(201))[0]}


def test_folder_errors(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with pytest.raises(UserError, match=r"data\.path: .* is not a folder"):
        ImageFolder(CPU, path=str(root), size=8)
    grow(root, 2)
    with pytest.raises(UserError, match=r"no folder 'train'; there is: cat, dog .*data\.test_fraction"):
        ImageFolder(CPU, path=str(root), size=8)
    split = tmp_path / "split"
    grow(split / "train", 2)
    grow(split / "val", 2, ("cat", "fox"))
    assert ImageFolder(CPU, path=str(split), size=8).notes[0] == (
        "there is no folder 'test', so 'val' is the test split"
    )
    grow(split / "valid", 2, ("cat", "fox"))
    with pytest.raises(UserError, match=r"data\.test: .* no folder 'test'; there is: train, val, valid"):
        ImageFolder(CPU, path=str(split), size=8)
    (split / "none" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="the test split holds no image"):
        ImageFolder(CPU, path=str(split), size=8, test="none")
    (split / "bare").mkdir()
    with pytest.raises(UserError, match="holds neither class folders nor images"):
        ImageFolder(CPU, path=str(split), size=8, train="bare")


def test_folder_names_the_truncated_image(tmp_path: Path) -> None:
    grow(tmp_path / "train")
    grow(tmp_path / "test")
    bad = tmp_path / "train" / "dog" / "1.PNG"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"dog/1\.PNG: unreadable image"):
        ImageFolder(CPU, path=str(tmp_path), size=8)
    assert ImageFolder(CPU, path=str(tmp_path), size=8, options=FileOptions(on_bad_image="skip")).skipped == 1


# ---- torchvision


def cifar(root: Path) -> None:
    base = root / "cifar-10-batches-py"
    base.mkdir()
    generator = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": generator.integers(0, 255, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (base / name).write_bytes(pickle.dumps(batch))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def test_torchvision_reads_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import cifar as module

    cifar(tmp_path)
    monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: Path(path).exists())
    data = Torchvision(CPU, dataset="CIFAR10", path=str(tmp_path), size=32)
    assert (data.train_images, data.test_images, data.classes) == (50, 10, 10)
    assert data.class_names[3] == "cat"
    raw = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    images, labels = next(data.test(10))
    assert np.array_equal(images.numpy(), raw["data"].reshape(10, 3, 32, 32))
    assert labels.tolist() == raw["labels"]


def test_torchvision_absent_says_what_to_set(tmp_path: Path) -> None:
    for name in ("CIFAR10", "STL10", "MNIST", "Imagenette", "DTD", "FGVCAircraft", "SVHN"):
        with pytest.raises(UserError, match=r"set data\.download: true to fetch it"):
            Torchvision(CPU, dataset=name, path=str(tmp_path / "none"), size=32)  # type: ignore[arg-type]


def test_torchvision_download_is_asked_for_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Fake:
        def __init__(self, root: str, download: bool, split: str, size: str) -> None:
            asked.append((root, download, split, size))
            raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.Imagenette", Fake)
    with pytest.raises(UserError, match=r"data\.download: Imagenette could not be put into .*no route"):
        Torchvision(CPU, dataset="Imagenette", path=str(tmp_path / "new"), size=32, download=True)
    assert asked == [(str(tmp_path / "new"), True, "train", "320px")]


@pytest.mark.parametrize(("train", "values"), [("unlabelled", [7, 8]), ("all", [1, 7, 8])])
def test_torchvision_trains_on_the_images_of_stl10_without_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str, values: list[int]
) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, greys in (("train", [1]), ("unlabeled", [7, 8]), ("test", [2, 3, 4])):
        (folder / f"{name}_X.bin").write_bytes(b"".join(bytes([grey]) * (3 * 96 * 96) for grey in greys))
        (folder / f"{name}_y.bin").write_bytes(bytes(range(1, len(greys) + 1)))
    monkeypatch.setattr("torchvision.datasets.STL10._check_integrity", lambda self: True)
    data = Torchvision(CPU, dataset="STL10", path=str(tmp_path), size=8, train=train)
    assert not data.labelled
    assert next(iter(data.bank(3)))[0][:, 0, 0, 0].tolist() == values
    assert (data.classes, data.test_images) == (1, 3)
    labelled = Torchvision(CPU, dataset="STL10", path=str(tmp_path), size=8)
    assert labelled.labels("test").tolist() == [0, 1, 2]


def test_torchvision_says_of_which_set_all_images_have_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train: all images of SVHN have labels; STL10 has others"):
        Torchvision(CPU, dataset="SVHN", path=str(tmp_path), size=8, train="unlabelled")


def test_torchvision_labels_under_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = (("tench", "fish"), ("springer",))

        def __init__(self, root: str, download: bool, split: str, size: str) -> None:
            self._samples = [("a", 1), ("b", 0)]

        def __getitem__(self, index: int) -> tuple[Image.Image, int]:
            return Image.new("RGB", (9, 9), (index, 0, 0)), 1 - index

    monkeypatch.setattr("torchvision.datasets.Imagenette", Fake)
    data = Torchvision(CPU, dataset="Imagenette", path=str(tmp_path), size=4)
    assert data.class_names == ("tench", "springer")
    images, labels = next(data.bank(2))
    assert labels.tolist() == [1, 0]
    assert images[:, 0, 0, 0].tolist() == [0, 1]


def test_the_table_of_data_sets_is_complete() -> None:
    from typing import get_args

    from torchvision import datasets

    from dino_lab.components.data.torchvision import _ARGUMENTS, Name

    assert set(get_args(Name)) == set(_ARGUMENTS)
    assert all(hasattr(datasets, name) for name in _ARGUMENTS)


# ---- registry and real data


@pytest.mark.parametrize("name", ["parquet", "image_folder", "torchvision"])
def test_parameters_are_required_and_bounded(name: str) -> None:
    params = registry.find("data", name).params
    fields = {"name": name, "path": "x", "size": 8}
    fields |= {"dataset": "CIFAR10"} if name == "torchvision" else {}
    assert params.model_validate(fields).model_dump()["on_bad_image"] == "error"
    for wrong in ({"size": 0}, {"limit": 0}, {"std": (1, 1, 0)}, {"on_bad_image": "ignore"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            params.model_validate(fields | wrong)
    with pytest.raises(ValueError, match="path"):
        params.model_validate({key: value for key, value in fields.items() if key != "path"})


REAL = Path(os.environ.get("DINO_LAB_DATA", "/nowhere"))


@pytest.mark.skipif(not (REAL / "clothing10").is_dir(), reason="no clothing10 in DINO_LAB_DATA")
def test_real_photographs() -> None:
    folder = REAL / "clothing10"
    data = Parquet(CPU, path=str(folder), train="val.parquet", size=64)
    assert (data.classes, data.train_images, data.test_images, data.skipped) == (10, 341, 372, 0)
    images, _ = next(data.bank(64))
    assert 40 < images.float().mean() < 220
    assert images.float().std() > 30


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no cifar10 in DINO_LAB_DATA")
def test_real_cifar10() -> None:
    source = Rows([REAL / "cifar10" / "test.parquet"], Columns("image", "label"))
    assert source.labels.bincount().tolist() == [1000] * 10
    images = np.stack([decode(source.open(i), 32) for i in range(50)])
    assert images.std() > 30
