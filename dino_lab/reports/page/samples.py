"""Some images of a run's data with their features, encoded once for every part of a report."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import MayGiveWhole, ability, class_names
from dino_lab.runs.open import SavedRun
from dino_lab.types import BackboneOutput

# Test images and training images: at most, and at least, however large the network is.
MOST, LEAST = (500, 1500), (40, 120)
WORK = 8e11  # multiplications of all images together: some five seconds on two cores
SHOWN = 8  # images that are looked at one by one
_BATCH = 16

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class SampledSplit:
    """Images uint8 [N, C, H, W], labels [N] and unit-length features [N, D], on the CPU.

    `whole` is how many images the split has.
    """

    images: Tensor
    labels: Tensor
    features: Tensor
    whole: int

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Samples:
    """A random part of each split, the same on every machine; `shown` are positions in `test`."""

    test: SampledSplit
    bank: SampledSplit
    shown: Tensor  # [SHOWN] at most
    names: tuple[str, ...]  # of the classes

    @property
    def shown_names(self) -> tuple[str, ...]:
        """Classes of the images that are looked at."""
        return tuple(self.names[int(label)] for label in self.test.labels[self.shown])

    @property
    def finite(self) -> bool:
        """Whether every feature is a number."""
        return bool(self.test.features.isfinite().all() and self.bank.features.isfinite().all())


def take_samples(run: SavedRun, encode: Encoder, most: tuple[int, int] = MOST, work: float = WORK) -> Samples:
    """Test images drawn with a fixed seed, and training images in the order of the first epoch.

    Where training is given whole images, these are squares, drawn as the test images are. At most `most` of
    either, and fewer where all would take more than `work` multiplications.
    """
    data = run.evaluation_data
    image = torch.zeros(1, data.channels, data.size, data.size, dtype=torch.uint8)
    test_images, bank_images = sample_sizes(multiplications(encode, image), most, work)
    test = _encoded(encode, _drawn(data, min(test_images, data.test_images)), data.test_images)
    size = min(_BATCH, data.train_images)
    count = min(bank_images, data.train_images) // size
    if (giving := ability(data, MayGiveWhole)) is not None and giving.whole:
        training: Batches = _drawn(data, count * size, "train")
    else:
        training = islice(cast("Batches", data.train(size, run.spec.seed, 0)), count)
    bank = _encoded(encode, training, data.train_images)
    return Samples(test, bank, _one_of_each(test.labels), class_names(data))


def same_samples(samples: Samples, encode: Encoder) -> Samples:
    """The same images with the features of another network."""
    test, bank = (
        _encoded(
            encode, zip(split.images.split(_BATCH), split.labels.split(_BATCH), strict=True), split.whole
        )
        for split in (samples.test, samples.bank)
    )
    return replace(samples, test=test, bank=bank)


def sample_sizes(of_one: float, most: tuple[int, int] = MOST, work: float = WORK) -> tuple[int, int]:
    """How many test and training images are encoded, by the multiplications that one of them takes.

    The state of the machine has no part in it, so that a report shows the same everywhere.
    """
    share = work / max(of_one, 1.0) / sum(most)
    test, bank = (max(low, min(high, int(high * share))) for high, low in zip(most, LEAST, strict=True))
    return test, bank


def multiplications(encode: Encoder, images: Tensor) -> float:
    """Multiplications of linear layers and convolutions in a forward of images uint8 [N, C, H, W]."""
    counted: list[int] = []

    def count(module: nn.Module, _: object, output: object) -> None:
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1 and isinstance(output, Tensor):
            counted.append(output.numel() * weight[0].numel())

    hooks = [module.register_forward_hook(count) for module in encode.network.backbone.modules()]
    try:
        encode(images)
    finally:
        for hook in hooks:
            hook.remove()
    return float(sum(counted))


def ask_shown(encode: Encoder, samples: Samples, capability: Literal["tokens", "attention"]) -> Tensor:
    """An optional output of the backbone for the shown images, on the CPU; a UserError where it has none.

    One forward for all who ask.
    """
    images = samples.test.images[samples.shown]
    output: BackboneOutput = encode.once("shown", lambda: encode.outputs(images))
    given = output.tokens if capability == "tokens" else output.attention
    return (encode.ask(capability, images) if given is None else given).cpu()  # `ask` says why there is none


def _drawn(data: Any, count: int, split: Literal["train", "test"] = "test") -> Batches:
    """Batches of `count` random images of a split, in random order."""
    whole = data.test_images if split == "test" else data.train_images
    rows = torch.randperm(whole, generator=torch.Generator().manual_seed(0))[:count]
    if hasattr(data, "read"):
        yield from data.read(split, rows.split(_BATCH))
        return
    wanted, found = {int(row): place for place, row in enumerate(rows)}, {}
    batches = data.test(_BATCH) if split == "test" else data.bank(_BATCH)
    for row, image in enumerate(_one_by_one(batches)):
        if row in wanted:
            found[wanted[row]] = image
        if len(found) == count:
            break
    for places in torch.arange(count).split(_BATCH):
        images, labels = zip(*(found[int(place)] for place in places), strict=True)
        yield torch.stack(images), torch.stack(labels)


def _one_by_one(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in batches:
        yield from zip(images, labels, strict=True)


def _encoded(encode: Encoder, batches: Batches, whole: int) -> SampledSplit:
    images, labels, features = [], [], []
    for x, y in batches:
        features.append(F.normalize(encode(x), dim=-1).cpu())
        images.append(x.cpu())
        labels.append(y.cpu())
    return SampledSplit(torch.cat(images), torch.cat(labels), torch.cat(features), whole)


def _one_of_each(labels: Tensor) -> Tensor:
    """Positions of images of different classes, as far as there are classes enough."""
    first = {int(label): i for i, label in reversed(list(enumerate(labels.tolist())))}
    chosen = [first[label] for label in sorted(first)]
    chosen += [i for i in range(len(labels)) if i not in chosen]
    return torch.tensor(chosen[:SHOWN], dtype=torch.int64)
