"""Data in shards: what is read, what is indexed, and what is said about bad input."""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from components.made_shards import CPU, NAMES, encoded, pixels, sample, write_tar
from PIL import Image

from dino_lab.components.data import _shard_set
from dino_lab.components.data._labelled import FileOptions
from dino_lab.components.data._tar import Tar
from dino_lab.components.data.shards import Shards
from dino_lab.errors import UserError
from dino_lab.runs.data_record import data_record, fingerprint
from dino_lab.spec.file import load
from dino_lab.types import WholeImages

SHARDS = (7, 5, 9)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DINO_LAB_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """21 training images in three shards and 5 test images in one."""
    first = 0
    for number, count in enumerate(SHARDS):
        samples = {f"{i:04}": sample(i) for i in range(first, first + count)}
        write_tar(tmp_path / f"train-{number:02}.tar", samples)
        first += count
    write_tar(tmp_path / "test-00.tar", {f"{i:04}": sample(i) for i in range(100, 105)})
    return tmp_path


def shards(folder: Path, path: str = "train-{00..02}.tar", **given: Any) -> Shards:
    options = FileOptions(**{key: given.pop(key) for key in list(given) if key in FileOptions.model_fields})
    if "test_fraction" not in given:
        given.setdefault("test", f"{folder}/test-*.tar")
    return Shards(CPU, path=f"{folder}/{path}", size=given.pop("size", 10), options=options, **given)


# ---- what is read


@pytest.mark.parametrize(
    ("label", "names"),
    [("cls", ("0", "1", "2")), ("txt", NAMES), ("json:of.kind", NAMES), (None, ("unlabelled",))],
)
def test_images_and_labels_of_tar_files(folder: Path, label: str | None, names: tuple[str, ...]) -> None:
    data = shards(folder, label=label)
    assert (data.train_images, data.test_images, data.class_names) == (21, 5, names)
    assert data.labelled == (label is not None)
    images, labels = (torch.cat(parts) for parts in zip(*data.bank(4), strict=True))
    assert labels.tolist() == [i % 3 if label else 0 for i in range(21)]
    assert torch.equal(data.labels("train"), labels)
    assert all(torch.equal(images[i], pixels(i)) for i in range(21))
    images, labels = next(data.test(5))
    assert labels.tolist() == [i % 3 if label else 0 for i in range(100, 105)]
    assert torch.equal(images[4], pixels(104))


@pytest.mark.parametrize("names", [None, list(NAMES)])
def test_row_groups_of_parquet_files_are_shards(folder: Path, names: list[str] | None) -> None:
    for split, numbers in (("train", range(21)), ("test", range(100, 105))):
        images = [{"bytes": encoded(i), "path": "x.png"} for i in numbers]
        table = pa.table({"image": images, "label": [i % 3 for i in numbers], "more": [0 for _ in numbers]})
        if names:
            info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
        pq.write_table(table, folder / f"{split}.parquet", row_group_size=4)
    data = shards(folder, "train.parquet", test=f"{folder}/test.parquet", label="label", window=2)
    assert data.class_names == (NAMES if names else ("0", "1", "2"))
    assert "21 more" in "\n".join(data.found().lines()) or "26 more" in "\n".join(data.found().lines())
    tars = shards(folder, label="cls")
    for mine, theirs in zip(data.bank(8), tars.bank(8), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    batches = list(islice(data.train(4, 0, 0), 5))
    assert sorted(torch.cat([labels for _, labels in batches]).bincount().tolist()) in ([6, 7, 7],)
    first = batches[0][0]
    assert all(any(torch.equal(image, pixels(i)) for i in range(21)) for image in first)


def test_a_run_goes_on_in_the_middle_of_an_epoch_and_on_several_processes(folder: Path) -> None:
    data = shards(folder, label="cls", window=2)
    whole = list(islice(data.train(4, seed=7, start=0), 12))
    for start in (1, 4, 8):
        for a, b in zip(whole[start:], data.train(4, seed=7, start=start), strict=False):
            assert all(map(torch.equal, a, b))
    halves = [data.train_share(4, 7, 3, part) for part in (slice(0, 2), slice(2, 4))]
    for a, b, c in zip(whole[3:8], *halves, strict=False):
        assert all(torch.equal(x, torch.cat((y, z))) for x, y, z in zip(a, b, c, strict=True))
    epoch = torch.cat([images for images, _ in whole[:5]])
    assert len({image.numpy().tobytes() for image in epoch}) == 20


def test_a_share_of_the_images_is_tested_whatever_shards_come(folder: Path) -> None:
    def split(path: str) -> list[set[bytes]]:
        data = shards(folder, path, test_fraction=0.3)
        return [
            {i.numpy().tobytes() for images, _ in its(4) for i in images} for its in (data.bank, data.test)
        ]

    some, more = split("train-{00,01}.tar"), split("train-*.tar")
    assert some[0] <= more[0]
    assert some[1] <= more[1]
    assert not more[0] & more[1]
    assert len(more[0] | more[1]) == 21
    assert 0 < len(more[1]) < 14


def test_limit_takes_a_fixed_random_subset(folder: Path) -> None:
    def seen(limit: int | None) -> set[bytes]:
        return {i.numpy().tobytes() for images, _ in shards(folder, limit=limit).bank(4) for i in images}

    assert len(seen(8)) == 8
    assert seen(8) < seen(12) < seen(None)
    assert shards(folder, limit=8).test_images == 5


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_pythons_tarfile_reads_them(form: int) -> None:
    buffer = io.BytesIO()
    names = ["a.png", "d/b.png", "e" * 90 + "/" + "f" * 60 + ".png", "é.png"]
    if form != tarfile.USTAR_FORMAT:
        names.append("g" * 300 + ".png")
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as tar:
        folder = tarfile.TarInfo("d")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 500 * i
            tar.addfile(info, io.BytesIO(b"x" * info.size))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "a.png"
        tar.addfile(link)

    class Reader(io.BytesIO):
        def skip(self, length: int) -> None:
            self.seek(length, os.SEEK_CUR)

    content = buffer.getvalue()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        expected = [(its.name, its.offset_data, its.size) for its in tar if its.isreg()]
    assert list(Tar(Reader(content), len(content))) == expected


def test_training_may_see_whole_images(folder: Path) -> None:
    data = shards(folder, label="cls", window=3, crops="full", longest=11)
    assert data.whole
    images, labels = next(data.train(20, 0, 0))
    squares, their_labels = next(shards(folder, label="cls", window=3).train(20, 0, 0))
    assert isinstance(images, WholeImages)
    assert torch.equal(labels, their_labels)
    assert images.sizes.tolist() == [[11, 9]] * 20  # of 12 x 10
    assert next(data.bank(3))[0].shape == next(data.test(3))[0].shape == (3, 3, 10, 10)
    part, _ = next(data.train_share(20, 0, 0, slice(5, 8)))
    assert all(map(torch.equal, part, list(images)[5:8]))
    assert squares.shape == (20, 3, 10, 10)
    with pytest.raises(
        UserError, match=r"data\.longest: is of whole images; crops: full gives training those"
    ):
        shards(folder, longest=11)


def test_bands_of_any_depth(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (21, 2, 10, 10)).astype(np.uint16)
    samples: dict[str, dict[str, bytes]] = {}
    for i, each in enumerate(values):
        buffer = io.BytesIO()
        np.save(buffer, each)
        samples[f"{i}"] = {"npy": buffer.getvalue()}
    write_tar(folder / "a.tar", samples)
    given = {"image": "npy", "test": None, "test_fraction": 0.3, "channels": (2, 1), "range": (0, 4095)}
    data = shards(folder, "a.tar", mean=(0.5, 0.5), std=(0.2, 0.2), **given)
    assert data.channels == 2
    found = {
        image.numpy().tobytes() for its in (data.bank, data.test) for images, _ in its(4) for image in images
    }
    assert found == {np.floor(each[::-1] / 4095 * 255 + 0.5).astype(np.uint8).tobytes() for each in values}
    assert any("band 2 0 to 4095; band 1 0 to 4095" in note for note in data.notes)
    with pytest.raises(
        UserError, match=r"data\.mean: has 3 numbers, and there are 2 channels; in \d+ images"
    ):
        shards(folder, "a.tar", **given)


# ---- the index


def test_an_index_is_made_once_and_again_when_the_shard_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    index_tar = _shard_set.index_tar

    def counted(address: str, *rest: Any) -> Any:
        made.append(Path(address).name)
        return index_tar(address, *rest)

    monkeypatch.setattr(_shard_set, "index_tar", counted)
    before = fingerprint(folder / "train-00.tar"), fingerprint(folder)
    data = shards(folder, label="cls")
    assert sorted(made) == ["test-00.tar", *(f"train-0{i}.tar" for i in range(3))]
    made.clear()
    assert shards(folder, label="cls").fingerprint() == data.fingerprint()
    assert made == []
    assert (fingerprint(folder / "train-00.tar"), fingerprint(folder)) == before
    list(data.bank(8))
    write_tar(folder / "train-01.tar", {f"{i}": sample(i) for i in range(3)})
    data = shards(folder, label="cls")
    assert data.labels("train").tolist() == [i % 3 for i in (*range(7), *range(3), *range(12, 21))]
    assert made == ["train-01.tar"]
    made.clear()
    file = folder / "train-02.tar.cls.shard-index"
    file.write_bytes(file.read_bytes()[:-1])
    assert shards(folder, label="cls").train_images == 19
    assert made == ["train-02.tar"]


def test_an_index_lies_in_the_cache_where_the_folder_cannot_be_written(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder and access(path, mode))
    assert shards(folder).train_images == 21
    assert not list(folder.glob("*.shard-index"))
    assert len(list((cache / "indexes").glob("*.shard-index"))) == 4


def test_what_is_not_used_is_said(folder: Path) -> None:
    with_more = {"a": sample(0), "b": {"cls": b"1"}, "c": sample(2) | {"seg.png": encoded(9)}}
    write_tar(folder / "train-01.tar", with_more)
    text = "\n".join(shards(folder).found().lines())
    assert "1 sample without an image: b" in text
    assert "1 seg.png (member or column)" in text
    assert "24 cls (member or column)" in text
    assert "note: samples have a member cls; data.label: cls takes it for their class" in text


# ---- bad input


def flip(content: bytes) -> bytes:
    at = content.index(b"0009.cls")
    return content[:at] + b"X" + content[at + 1 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "it is empty"),
    "cut": (lambda content: content[:5000], r"cut short"),
    "cut at a member": (lambda content: content[: content.index(b"0009.png")], "lacks the blocks that end"),
    "text": (lambda content: b"hello, world\n" * 100, "no tar file"),
    "gzip": (gzip.compress, r"compressed \(gzip\); unpack it to \.tar"),
    "a header": (flip, r"its header at byte \d+ is damaged"),
    "two": (lambda content: content + content, "two tar files, one after the other"),
    "no image": (lambda content: content.replace(b".png", b".dat"), "header at byte"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named_and_left_out_on_request(
    folder: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = folder / "train-01.tar"
    change, complaint = DAMAGE[kind]
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=rf"train-01\.tar: unreadable shard \(.*{complaint}") as caught:
        shards(folder)
    assert "\n" not in str(caught.value)
    assert "on_bad_shard: skip" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        data = shards(folder, on_bad_shard="skip")
    assert data.train_images == 16
    assert "left out 1 of 3 shards; the first: " in caplog.text
    assert any("1 damaged shard, left out" in line for line in data.found().lines())


def test_a_shard_that_is_not_there(folder: Path) -> None:
    with pytest.raises(UserError, match=r"train-03\.tar: unreadable shard \(No such file"):
        shards(folder, "train-{00..03}.tar")
    assert shards(folder, "train-{00..03}.tar", on_bad_shard="skip").train_images == 21


def test_a_damaged_parquet_file(folder: Path) -> None:
    pq.write_table(pa.table({"image": [encoded(0)] * 9}), folder / "a.parquet")
    content = (folder / "a.parquet").read_bytes()
    (folder / "a.parquet").write_bytes(content[:-50])
    with pytest.raises(UserError, match=r"a\.parquet: unreadable shard \(not a whole Parquet file"):
        shards(folder, "a.parquet")


def test_a_bad_image_ends_the_run_or_the_next_one_takes_its_place(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = {f"{i:04}": sample(i) for i in range(7, 12)}
    samples["0009"]["png"] = encoded(9)[:80]
    write_tar(folder / "train-01.tar", samples)
    with pytest.raises(UserError, match=r"train-01\.tar: 0009\.png: unreadable image .*on_bad_image: skip"):
        shards(folder, label="cls")
    with caplog.at_level(logging.WARNING):
        data = shards(folder, label="cls", on_bad_image="skip")
        images, labels = (torch.cat(parts) for parts in zip(*data.bank(4), strict=True))
    assert torch.equal(images[9], pixels(10))
    assert int(labels[9]) == 10 % 3
    assert "1 so far, the next image in its place: " in caplog.text
    assert "0009.png" in caplog.text


def test_a_shard_that_is_damaged_after_the_start_is_one_line(folder: Path) -> None:
    data = shards(folder)
    (folder / "train-02.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"train-02\.tar: unreadable shard \(ends before byte \d+\)"):
        list(data.bank(4))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"path": "no-*.tar"}, r"data\.path: no file matches .*no-\*\.tar"),
        ({"path": "train-{2..0}.tar"}, r"data\.path: .*train-\{2\.\.0\}\.tar: braces count upwards"),
        ({"path": "{0..999999999}.tar"}, r"data\.path: .* to at most 1000000 files"),
        ({"path": "."}, r"data\.test: .*test-00\.tar is named by data\.path, too"),
        ({"path": "{train-00,train-00}.tar"}, r"data\.path: .*train-00\.tar is named twice"),
        ({"path": "x.tar.gz"}, r"is neither a \.tar nor a \.parquet file; unpack it"),
        ({"path": "x.zip"}, r"is neither a \.tar nor a \.parquet file$"),
        ({"path": "empty"}, r"data\.path: .*empty holds no shards \(\.tar or \.parquet files\)"),
        ({"test": None}, r"data\.test: the test split is named by data\.test, or .*data\.test_fraction"),
        ({"test": "x.tar", "test_fraction": 0.5}, r"data\.test: the test split is named by"),
        ({"label": "id"}, r"data\.label: .*test-00\.tar: sample 0100 has no member id|sample 0000 has no"),
        ({"label": "json:nothing"}, r"data\.label: .*sample \d+: its label is neither a text nor a whole"),
        ({"label": "json:list"}, r"data\.label: .*sample \d+: its label is neither a text nor a whole"),
        ({"image": "jpg"}, r"unreadable shard \(holds no image \(7 samples; members that are not used: "),
    ],
)
def test_mistakes_are_one_line(folder: Path, given: dict[str, Any], complaint: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=complaint) as caught:
        shards(folder, **given)
    assert "\n" not in str(caught.value)


def test_two_images_in_a_sample_are_not_guessed(folder: Path) -> None:
    write_tar(folder / "train-01.tar", {"a": {"png": encoded(1), "jpg": encoded(2, "JPEG")}})
    with pytest.raises(UserError, match=r"data\.image: .*sample a has members png and jpg; say which"):
        shards(folder)
    data = shards(folder, "train-01.tar", image="png", test_fraction=None, test=f"{folder}/test-00.tar")
    assert torch.equal(next(data.bank(1))[0][0], pixels(1))


def test_hidden_labels_and_captions_are_no_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_lab.components.data.shards.MOST_CLASSES", 2)
    with pytest.raises(UserError, match=r"data\.label: txt has 3 different values, which are no classes"):
        shards(folder, label="txt")
    write_tar(folder / "test-00.tar", {"a": {"png": encoded(1), "cls": b"-1"}})
    with pytest.raises(UserError, match=r"data\.label: cls has the label -1; data sets of hubs mark"):
        shards(folder, label="cls")


def test_row_groups_that_do_not_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [encoded(i) for i in range(9)]}), folder / "a.parquet")

    class Little:
        available = 10_000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(UserError, match=r"data\.window: 8 row groups of up to 0 MB in each of"):
        shards(folder, "a.parquet")


def test_grey_values_of_more_than_8_bits_need_white(folder: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(buffer, "PNG")
    write_tar(folder / "train-01.tar", {"a": {"png": buffer.getvalue()}})
    with pytest.raises(UserError, match=r"data\.white: .*a\.png has grey values of more than 8 bits"):
        shards(folder)
    assert shards(folder, white=4095).train_images == 17


# ---- identity


def test_the_cache_decides_nothing_and_the_record_has_the_shards(folder: Path, tmp_path: Path) -> None:
    from dino_lab.spec.identity import identity_of

    spec = tmp_path / "spec.yaml"
    text = f"data: {{name: shards, path: '{folder}/train-*.tar', test: '{folder}/test-*.tar', size: 10"
    hashes = []
    for more in ("", ", cache_gb: 3", ", window: 3"):
        spec.write_text(f"extends: quickstart\n{text}{more}}}\n")
        hashes.append(identity_of(load(spec).spec).hash)
    assert hashes[0] == hashes[1] != hashes[2]
    params = load(spec).spec.data
    before = data_record(params, shards(folder))["files"]["files"]
    os.utime(folder / "train-00.tar", (1, 1))
    assert data_record(params, shards(folder))["files"]["files"] == before
    write_tar(folder / "train-01.tar", {"a": sample(0)})
    assert data_record(params, shards(folder))["files"]["files"] != before
