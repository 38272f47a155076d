"""What every data component shares: a labelled training and test split, and the order of their batches."""

from __future__ import annotations

import copy
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.data._bands import Pair, bands_notes, check_statistics, chosen_bands, ranges_of
from dino_lab.components.data._storage import (
    Batch,
    OnBadImage,
    Resident,
    Source,
    Split,
    Storage,
    TrainingStorage,
    load,
    load_whole,
)
from dino_lab.components.data._traits import Traits
from dino_lab.errors import Misfit, UserError, printable
from dino_lab.imaging.bands import MOST_BANDS
from dino_lab.imaging.decode import MAX_PIXELS, Reading, Whole
from dino_lab.imaging.report import EXAMPLES, DataReport, PassedOver, SplitReport
from dino_lab.registry import ParameterGroup
from dino_lab.types import Images

Numbers = tuple[float, ...]
Positive = Annotated[float, Field(gt=0)]
Size = Annotated[
    int,
    Field(gt=0, description="side of the images in pixels: the short side is scaled, the centre cut out"),
]
Limit = Annotated[
    int | None,
    Field(gt=0, description="training images at most, a random subset, always the same; null: all"),
]
Band = Annotated[int, Field(ge=1)]
EachChannel = Field(min_length=1, max_length=MOST_BANDS)
Percent = Annotated[float, Field(ge=0, le=100)]
UNLABELLED = "unlabelled"  # the one class of images without labels
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_NOTHING = Resident(torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))


class FileOptions(ParameterGroup):
    """How files are read into a data set, and how its pixels are normalised."""

    limit: Limit = None
    on_bad_image: OnBadImage = Field(
        "error", description="of an image that cannot be decoded: end with an error, or leave the image out"
    )
    mean: Annotated[tuple[float, ...], EachChannel] = Field(
        IMAGENET_MEAN,
        description="subtracted from the channels in 0..1, a number for each; default: ImageNet's of RGB",
    )
    std: Annotated[tuple[Positive, ...], EachChannel] = Field(
        IMAGENET_STD,
        description="channels are divided by it after that, a number for each; default: ImageNet's of RGB",
    )
    white: float | None = Field(
        None,
        gt=0,
        description="white of grey images of more than 8 bits; null: as many bits as the largest value has",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        gt=0,
        description="pixels of the largest image that is decoded: a guard against hostile files",
    )
    crops: Literal["square", "full"] = Field(
        "square",
        description="what crops are cut from: the square of `size` that evaluators see, or the whole image",
    )
    longest: int | None = Field(
        None,
        gt=0,
        description="longer side in pixels that whole images are scaled down to; null: they stay as they are",
    )
    channels: Annotated[tuple[Band, ...], EachChannel] | None = Field(
        None, description="bands of the files, numbered from 1, that are used as they are; null: RGB is made"
    )
    range: tuple[float, float] | None = Field(
        None, description="values of the bands that become 0 and 1; null: 0 and 255, of bytes alone"
    )
    percentiles: tuple[Percent, Percent] | None = Field(
        None,
        description="percentiles of each band in training images that become 0 and 1, in place of `range`",
    )


class Labelled:
    """A training and a test split of square images; the methods of the protocol `Data`."""

    channels = 3
    labelled = True  # whether labels say something of the images
    passed_over: tuple[PassedOver, ...] = ()  # what lies beside the images and is not used
    notes: tuple[str, ...] = ()  # what else a user should know
    class_names: tuple[str, ...]

    def __init__(
        self,
        train: Storage,
        test: Storage,
        class_names: tuple[str, ...],
        size: int,
        mean: Numbers,
        std: Numbers,
        shown: TrainingStorage | None = None,
    ) -> None:
        """`shown` is what training sees in place of `train`, image by image."""
        self._train, self._test = train, test
        self._shown = train if shown is None else shown
        self.class_names, self.classes, self.size = class_names, len(class_names), size
        self.train_images, self.test_images = len(train.labels), len(test.labels)
        self.skipped = train.skipped + test.skipped
        self.mean = mean
        self.std = std

    @property
    def resident(self) -> bool:
        """Whether all images are in memory."""
        return all(isinstance(part, Resident) for part in (self._train, self._test, self._shown))

    def to(self, device: torch.device) -> Labelled:
        """The same images on another device; only of what is resident."""
        assert isinstance(self._train, Resident)
        assert isinstance(self._test, Resident)
        assert isinstance(self._shown, Resident)
        there = copy.copy(self)
        there._train, there._test = self._train.to(device), self._test.to(device)
        there._shown = there._train if self._shown is self._train else self._shown.to(device)
        return there

    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Images, Tensor]]:
        """Batches from step `start` on, without end: see the protocol."""
        return self.train_share(batch_size, seed, start, slice(None))

    def train_share(
        self, batch_size: int, seed: int, start: int, images: slice
    ) -> Iterator[tuple[Images, Tensor]]:
        """Some images of these batches; no other ones are read."""
        self._check_training_split()
        if batch_size > self.train_images:
            raise Misfit(
                ("train", "batch_size"), f"{batch_size} is more than {self.train_images} training images"
            )
        order = training_order(self.train_images, batch_size, seed, start)
        return self._shown.batches(rows[images] for rows in order)

    def found(self) -> DataReport:
        """What there is, what was passed over, and what was made of what can be meant otherwise."""
        labels = {"train": self.labels("train"), "test": self.labels("test")}
        there = {name: its for name, its in labels.items() if len(its)}
        return DataReport(
            splits={
                name: SplitReport(len(its), len(its.unique()) if self.labelled else None)
                for name, its in there.items()
            },
            class_names=tuple(self.class_names) if self.labelled else (),
            passed_over=self.passed_over,
            notes=self.notes + self._class_notes(labels["train"], labels["test"]),
        )

    def _class_notes(self, train: Tensor, test: Tensor) -> tuple[str, ...]:
        """About classes that not both splits have."""
        notes: list[str] = []
        if not self.labelled:
            return ()
        if len(train) and (alien := ~torch.isin(test, train)).any():
            names = ", ".join(printable(self.class_names[i], 40) for i in test[alien].unique()[:3].tolist())
            notes.append(
                f"{int(alien.sum())} of {len(test)} test images are of classes that no training image has "
                f"({names}): a classifier gets them wrong"
            )
        if len(torch.cat((train, test)).unique()) == 1:
            notes.append("all images are of one class: scores that compare classes mean nothing")
        return tuple(notes)

    def labels(self, split: Split) -> Tensor:
        """Labels int64 [N] of a split, on the CPU."""
        return self.storage(split).labels.cpu()

    def read(self, split: Split, rows: Iterable[Tensor]) -> Iterator[Batch]:
        """Images and labels of a split at the positions int64 [B] of each of `rows`."""
        return self.storage(split).batches(rows)

    def storage(self, split: Split) -> Storage:
        """Where the images of a split lie."""
        return self._train if split == "train" else self._test

    def test(self, batch_size: int) -> Iterator[Batch]:
        """The test split once, in order; the last batch may be smaller."""
        return self._test.batches(torch.arange(self.test_images).split(batch_size))

    def bank(self, batch_size: int) -> Iterator[Batch]:
        """The training split once, in order; the last batch may be smaller."""
        self._check_training_split()
        return self._train.batches(torch.arange(self.train_images).split(batch_size))

    def _check_training_split(self) -> None:
        if not self.train_images:
            raise UserError("the data have no training split; they are there to evaluate on")


class FromFiles(Labelled):
    """Two splits of encoded images, checked, cut down to `limit`, and loaded; there may be no training split.

    With `crops: full` training is given whole images; `bank` and `test` stay squares, which evaluators see.
    Without `class_names` distinct labels are numbered in ascending order, those that only the test split has
    last, and are the names of the classes.
    """

    whole = False  # whether training is given images of many sizes

    def __init__(
        self,
        device: torch.device,
        train: Source | None,
        test: Source,
        class_names: tuple[str, ...] | None,
        *,
        size: int,
        limit: int | None,
        on_bad_image: OnBadImage,
        mean: Numbers,
        std: Numbers,
        white: float | None = None,
        max_pixels: int = MAX_PIXELS,
        crops: Literal["square", "full"] = "square",
        longest: int | None = None,
        channels: tuple[int, ...] | None = None,
        range: Pair | None = None,
        percentiles: Pair | None = None,
    ) -> None:
        whole = whole_of(crops, longest)
        sources = [test] if train is None else [train, test]
        names = class_names or _number_labels(sources)
        for source in sources:
            _check_labels(source, (source.labels < 0) | (source.labels >= len(names)), len(names) - 1)
        rows = [torch.arange(len(source.labels)) for source in sources]
        if train is not None:
            rows[0] = subset(len(train.labels), limit)
        bands = chosen_bands(channels, range, percentiles, white)
        if bands is not None and percentiles is not None:
            bands = ranges_of(sources[0], rows[0], bands, percentiles, max_pixels)
        self.notes += bands_notes(bands, percentiles)
        asked = Reading(white=white, max_pixels=max_pixels, bands=bands)

        def load_all(reading: Reading) -> tuple[list[Storage], Traits]:
            traits, storages = Traits(), []
            for source, its in zip(sources, rows, strict=True):
                storage, found = load(source, its, size, device, on_bad_image, reading)
                storages.append(storage)
                traits.merge(found)
            return storages, traits

        storages, traits = load_all(asked)
        self.reading = traits.settle(asked)
        if self.reading != asked:
            storages.clear()  # so that there is as much memory as before
            storages, _ = load_all(self.reading)
        self.channels = self.reading.channels
        check_statistics(storages[0], len(storages[0].rows), self.channels, mean, std)
        shown: TrainingStorage | None = None
        if train is not None and whole is not None:
            self.whole = True
            shown = load_whole(train, storages[0].rows, whole, device, self.reading)
        squares = _NOTHING if train is None else storages[0]
        super().__init__(squares, storages[-1], names, size, mean, std, shown)
        if self.skipped:
            self.passed_over = (*self.passed_over, self._left_out(sources, rows, storages))
        self.notes = (*self.notes, *traits.notes(asked, self.reading))

    def _left_out(
        self, sources: Sequence[Source], rows: Sequence[Tensor], storages: Sequence[Storage]
    ) -> PassedOver:
        """Images that cannot be read, as `on_bad_image: skip` has them."""
        names = [
            source.name(row)
            for source, its, storage in zip(sources, rows, storages, strict=True)
            for row in its[~torch.isin(its, storage.rows)][:EXAMPLES].tolist()
        ]
        shown = tuple(printable(name, 200) for name in names[:EXAMPLES])
        return PassedOver("unreadable, left out", self.skipped, shown)


def whole_of(crops: Literal["square", "full"], longest: int | None) -> Whole | None:
    """How large whole images are, where crops are cut from these; a Misfit where `longest` is of no use."""
    if crops == "full":
        return Whole(longest)
    if longest is not None:
        raise Misfit(("data", "longest"), "is of whole images; crops: full gives training those")
    return None


def training_order(images: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Positions int64 [B] of the batches from step `start` on, each epoch ordered by (seed, epoch) alone."""
    steps = images // batch_size
    first_epoch, first_step = divmod(start, steps)
    for epoch in itertools.count(first_epoch):
        order = torch.randperm(images, generator=_generator(seed, epoch))
        for step in range(first_step if epoch == first_epoch else 0, steps):
            yield order[step * batch_size : (step + 1) * batch_size]


def _generator(seed: int, epoch: int) -> torch.Generator:
    # A hash, not a sum: seed 1 epoch 0 must not be seed 0 epoch 1.
    digest = hashlib.sha256(f"order of epoch {epoch} with seed {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def subset(images: int, limit: int | None) -> Tensor:
    """Positions of at most `limit` images, always the same ones, in order."""
    if limit is None or limit >= images:
        return torch.arange(images)
    return torch.randperm(images, generator=torch.Generator().manual_seed(0))[:limit].sort().values


def _number_labels(sources: Sequence[Source]) -> tuple[str, ...]:
    """Number the labels of the sources, in place, in ascending order of those of the first; their names."""
    first, last = sources[0].labels.unique(), sources[-1].labels.unique()
    for source in sources:
        _check_labels(source, (source.labels < 0), int(first.max()))
    values = torch.cat((first, last[~torch.isin(last, first)]))
    order = values.argsort()
    for source in sources:
        source.labels = order[torch.searchsorted(values[order], source.labels)]
    return tuple(map(str, values.tolist()))


def _check_labels(source: Source, wrong: Tensor, most: int) -> None:
    """A UserError that names the first wrong label, bool [N]."""
    if wrong.any():
        row = int(wrong.nonzero()[0])
        label = int(source.labels[row])
        hidden = (
            "; data sets of hubs mark hidden labels so, and have them in another split" if label == -1 else ""
        )
        raise UserError(f"{source.where(row)}: label {label} is not in 0..{most}{hidden}")
