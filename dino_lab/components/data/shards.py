"""Images in shards: WebDataset tar files and Parquet files, local or remote, of any size."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, NamedTuple, cast

import numpy as np
import psutil
import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.data._bands import bands_notes, check_statistics, chosen_bands, ranges_of, spread
from dino_lab.components.data._labelled import UNLABELLED, FileOptions, Labelled, Size, whole_of
from dino_lab.components.data._shard_cache import ShardCache, cache_folder
from dino_lab.components.data._shard_files import addresses
from dino_lab.components.data._shard_index import Wanted, name_of
from dino_lab.components.data._shard_order import ShardOrder
from dino_lab.components.data._shard_reader import ShardSource, ShardStorage
from dino_lab.components.data._shard_set import ALL, KEPT, File, OnBadShard, ShardSet, index_all
from dino_lab.components.data._storage import (
    RESIDENT_SHARE,
    SAMPLE,
    Batch,
    OnBadImage,
    Source,
    Storage,
    workers,
)
from dino_lab.components.data._traits import Traits
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.bands import Bands
from dino_lab.imaging.decode import BadImage, Reading, Trait
from dino_lab.imaging.files import shown
from dino_lab.imaging.report import DataReport, PassedOver, SplitReport
from dino_lab.registry import Flat, register
from dino_lab.types import Images

MOST_CLASSES = 100_000
MOST_LABELS = 10**7  # images of a split whose labels are counted for the report
LONGEST_NAME = 100  # characters of a class's name
Paths = str | Annotated[list[str], Field(min_length=1)]


@register("data", "shards")
class Shards(Labelled):
    """Images in shards: tar files as WebDataset writes them, or Parquet files; none stay in memory.

    `path` names the training shards: files, a folder, a pattern (`photos/train-*.tar`), a list in braces
    (`photos/train-{000..099}.tar`), or URLs of these: `https://`, and with their packages `s3://`, `gs://`,
    `hf://` and whatever else fsspec knows. Members of a tar file that follow each other and have a common
    stem are a sample; its image is the member that is called as an image file is. In a Parquet file the
    column `image` has them. Each shard is read once for an index, which then lies beside it, or in the folder
    that `DINO_LAB_CACHE` names (`~/.cache/dino-lab`).

    In each epoch the shards are permuted, then the images inside each window of `window` shards; a row group
    of a Parquet file counts as a shard. The order depends on (seed, epoch, step) alone. Shards should be
    mixed: one class in each would give batches of few classes. With `on_bad_image: skip` the next image of
    the shard that can be read takes the place of one that cannot.
    """

    whole = False  # whether training is given images of many sizes

    def __init__(
        self,
        device: torch.device,
        *,
        path: Annotated[Paths, Field(description="the training shards: files, a folder, a pattern, URLs")],
        size: Size,
        test: Annotated[Paths | None, Field(description="the shards of the test split, as in `path`")] = None,
        test_fraction: Annotated[
            float | None,
            Field(gt=0, lt=1, description="share of the images that is the test split, where `test` is null"),
        ] = None,
        image: Annotated[
            str | None,
            Field(description="member (`jpg`, `left.png`) or column that is the image; null: see above"),
        ] = None,
        label: Annotated[
            str | None,
            Field(description="`cls`, `txt`, `json:key` or a column: the class; null: there are no labels"),
        ] = None,
        window: Annotated[int, Field(ge=1, le=KEPT, description="shards whose images are mixed")] = 8,
        cache_gb: Annotated[
            float, Field(ge=0, description="GB of local copies of remote shards; decides no weight")
        ] = 20.0,
        on_bad_shard: Annotated[
            OnBadShard,
            Field(description="of a shard that is damaged or not there: end with an error, or leave it out"),
        ] = "error",
        options: Flat[FileOptions] = FileOptions(),
    ) -> None:
        self.window, wanted = window, Wanted(image, label)
        train_files, test_files, classes = self._index(path, test, test_fraction, wanted, on_bad_shard)
        self._shards = _splits(train_files, test_files, test_fraction, options.limit)
        _check_memory(self._shards, window)
        cache = ShardCache(cache_folder(), int(cache_gb * 1e9))
        sources = [ShardSource(its, wanted, classes.numbers, cache, window) for its in self._shards]
        self.labelled = label is not None
        self.passed_over += _unused([*train_files, *test_files])
        if label is None and any("cls" in file.header.unused for file in train_files):
            self.notes += ("samples have a member cls; data.label: cls takes it for their class",)
        self._open(sources, classes.names, size, device, options)

    def _open(
        self,
        sources: Sequence[ShardSource],
        names: tuple[str, ...],
        size: int,
        device: torch.device,
        options: FileOptions,
    ) -> None:
        """Settle how images are read, and open both splits."""
        whole, bands = whole_of(options.crops, options.longest), _bands(sources[0], options)
        asked = Reading(white=options.white, max_pixels=options.max_pixels, bands=bands)
        self.reading, traits = _look_at_some(sources, size, asked, options.on_bad_image)
        self.channels, self.whole = self.reading.channels, whole is not None
        self.notes += traits.notes(asked, self.reading) + bands_notes(bands, options.percentiles)
        extents = (sources[0], whole or size), (sources[0], size), (sources[1], size)
        self._drawn_from, self._squares, self._held_out = (
            ShardStorage(source, extent, device, options.on_bad_image, self.reading)
            for source, extent in extents
        )
        train, held_out = cast(Storage, self._squares), cast(Storage, self._held_out)
        check_statistics(train, len(self._shards[0]), self.channels, options.mean, options.std)
        super().__init__(train, held_out, names, size, options.mean, options.std)

    def train_share(
        self, batch_size: int, seed: int, start: int, images: slice
    ) -> Iterator[tuple[Images, Tensor]]:
        """Some images of the batches from step `start` on; no other ones are read."""
        if batch_size > self.train_images:
            raise Misfit(
                ("train", "batch_size"), f"{batch_size} is more than {self.train_images} training images"
            )
        order = ShardOrder(self._shards[0].counts, self.window, seed)
        return self._drawn_from.shuffled(order, batch_size, start, images)

    def test(self, batch_size: int) -> Iterator[Batch]:
        """The test split once, in order; the last batch may be smaller."""
        return self._held_out.in_order(batch_size)

    def bank(self, batch_size: int) -> Iterator[Batch]:
        """The training split once, in order; the last batch may be smaller."""
        return self._squares.in_order(batch_size)

    def found(self) -> DataReport:
        """What there is, and what was passed over; classes are counted where that is soon done."""
        if self.train_images + self.test_images <= MOST_LABELS:
            return super().found()
        classes = self.classes if self.labelled else None
        return DataReport(
            {
                "train": SplitReport(self.train_images, classes),
                "test": SplitReport(self.test_images, classes),
            },
            self.class_names if self.labelled else (),
            self.passed_over,
            self.notes,
        )

    def fingerprint(self) -> str:
        """16 hex digits of the shards' names, lengths and numbers of images; see the protocol."""
        digest = hashlib.sha256()
        for its in self._shards:
            for file in its.files:
                text = f"{name_of(file.address)}\0{file.header.size}\0{file.header.groups}\0"
                digest.update(text.encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def _index(
        self,
        path: Paths,
        test: Paths | None,
        test_fraction: float | None,
        wanted: Wanted,
        on_bad_shard: OnBadShard,
    ) -> tuple[list[File], list[File], _Classes]:
        """The shards of both splits and their classes; with `test_fraction` both have the same shards."""
        if (test is None) == (test_fraction is None):
            raise Misfit(
                ("data", "test"),
                "the test split is named by data.test, or is a share of the images: data.test_fraction: 0.01",
            )
        named = addresses(path, "path"), [] if test is None else addresses(test, "test")
        if both := sorted(set(named[0]) & set(named[1])):
            raise Misfit(("data", "test"), f"{shown(both[0])} is named by data.path, too")
        files: list[list[File]] = []
        labels: list[set[str]] = []
        for its in filter(None, named):
            found, its_labels, bad = index_all(its, wanted, on_bad_shard, cache_folder())
            files.append(found)
            labels.append(its_labels)
            self.passed_over += () if bad is None else (bad,)
        return files[0], files[-1], _Classes.of(labels, files[0][0].header.names, wanted.label)


def _bands(source: ShardSource, options: FileOptions) -> Bands | None:
    """The bands that are asked for, with their range."""
    bands = chosen_bands(options.channels, options.range, options.percentiles, options.white)
    if bands is None or options.percentiles is None:
        return bands
    sample = spread(len(source.shards))
    return ranges_of(cast(Source, source), sample, bands, options.percentiles, options.max_pixels)


class _Classes(NamedTuple):
    """Names by number, and numbers by label."""

    names: tuple[str, ...]
    numbers: dict[str, int]

    @classmethod
    def of(cls, labels: Sequence[set[str]], names: tuple[str, ...] | None, key: str | None) -> _Classes:
        """Labels numbered as `names` are, or ascending, those that only the test split has last."""
        if key is None:
            return cls((UNLABELLED,), {})
        there = set[str]().union(*labels)
        whole = all(re.fullmatch(r"-?\d+", label) for label in there)
        if hidden := sorted(label for label in there if whole and int(label) < 0):
            raise Misfit(
                ("data", "label"),
                f"{key} has the label {hidden[0]}; data sets of hubs mark hidden labels so. Null says that "
                "there are no labels",
            )
        if len(there) > MOST_CLASSES:
            raise Misfit(("data", "label"), f"{key} has {len(there)} different values, which are no classes")
        if names is not None:
            if strange := sorted(there - set(map(str, range(len(names))))):
                raise Misfit(("data", "label"), f"{key} has the label {strange[0]}, and {len(names)} names")
            return cls(names, {str(i): i for i in range(len(names))})
        first = labels[0]
        ranked = [sorted(its, key=int if whole else str) for its in (first, there - first)]
        ordered = [*ranked[0], *ranked[1]]
        shown_names = tuple(printable(label, LONGEST_NAME) for label in ordered)
        return cls(shown_names, {label: i for i, label in enumerate(ordered)})


def _splits(
    train: Sequence[File], test: Sequence[File], test_fraction: float | None, limit: int | None
) -> tuple[ShardSet, ShardSet]:
    """The images of both splits, by their numbers where they share shards or `limit` is set."""
    cut = 0 if test_fraction is None else round(test_fraction * ALL)
    splits = ShardSet(train, cut), ShardSet(test, 0, cut or ALL)
    for split, its in zip(("training", "test"), splits, strict=True):
        if not len(its):
            raise UserError(f"{shown(its.files[0].address)} and the shards beside it: no {split} image")
    if limit is not None and limit < len(splits[0]):
        least_left_out = np.partition(splits[0].numbers(), limit)[limit]
        splits = ShardSet(train, cut, int(least_left_out)), splits[1]
    return splits


def _check_memory(splits: Sequence[ShardSet], window: int) -> None:
    """A Misfit where the row groups of a window do not fit into memory."""
    heaviest = max(file.header.heaviest for its in splits for file in its.files)
    needed, free = heaviest * (window + 1) * workers(), psutil.virtual_memory().available
    if needed > RESIDENT_SHARE * free:
        raise Misfit(
            ("data", "window"),
            f"{window} row groups of up to {heaviest / 1e6:.0f} MB in each of {workers()} processes are "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; set a smaller window, or write "
            "smaller row groups",
        )


def _look_at_some(
    sources: Sequence[ShardSource], size: int, asked: Reading, on_bad_image: OnBadImage
) -> tuple[Reading, Traits]:
    """How images are read, by a sample of each split; a UserError names the first of it that cannot be."""
    traits = Traits()
    for source in sources:

        def look(position: int, source: ShardSource = source) -> dict[Trait, float] | BadImage:
            try:
                return source.examined(position, size, asked)[1]
            except BadImage as error:
                return error

        images = len(source.shards)
        positions = range(0, images, max(1, images // SAMPLE))
        with ThreadPoolExecutor(workers()) as pool:
            for position, its in zip(positions, pool.map(look, positions), strict=True):
                if isinstance(its, dict):
                    traits.add(its, source, position)
                elif on_bad_image == "error":
                    complaint = source.complaint(position, its)
                    raise UserError(f"{complaint}; {its.advice}, or set data.on_bad_image: skip")
    if asked.white is None and "grey" in traits:
        raise Misfit(
            ("data", "white"),
            f"{traits['grey'].first} has grey values of more than 8 bits; say which value is white, as not "
            "all images are read to find the largest (65535, or 4095 of 12 bits)",
        )
    return traits.settle(asked), traits


def _unused(files: Sequence[File]) -> tuple[PassedOver, ...]:
    """Members and columns that are not used, and samples without an image."""
    unused: Counter[str] = Counter()
    lacking, first = 0, ""
    for file in {file.address: file for file in files}.values():
        unused.update(file.header.unused)
        lacking += file.header.lacking[0]
        first = first or file.header.lacking[1]
    found = [PassedOver(f"{printable(name, 60)} (member or column)", count) for name, count in unused.items()]
    if lacking:
        found.append(PassedOver("sample without an image", lacking, (printable(first, 200),)))
    return tuple(found)
