"""Some images of a run's data with their features, encoded once for every part of a report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import class_names
from dino_lab.runs.open import SavedRun
from dino_lab.types import BackboneOutput

TEST_IMAGES = 500
BANK_IMAGES = 1500
SHOWN = 8  # images that are looked at one by one
SECONDS = 1.25  # after which no more images of a split are encoded: a report does not take long
_BATCH = 16


@dataclass(frozen=True)
class Split:
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
    """A random part of each split, the same one every time if encoding is fast.

    `shown` are positions in `test`.
    """

    test: Split
    bank: Split
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


def take_samples(run: SavedRun, encode: Encoder) -> Samples:
    """Test images by chance, and training images in the order of an epoch."""
    data = run.data
    test = _encoded(encode, _test_images(run), data.test_images)
    size = min(_BATCH, data.train_images)
    batches = data.train(size, run.spec.seed, 0)
    bank = _encoded(
        encode, (next(batches) for _ in range(min(BANK_IMAGES, data.train_images) // size)), data.train_images
    )
    return Samples(test, bank, _one_of_each(test.labels), class_names(data))


def ask_shown(encode: Encoder, samples: Samples, capability: Literal["tokens", "attention"]) -> Tensor:
    """What the backbone gives of the images that are looked at, on the CPU; a UserError where it does not.

    One forward for all who ask.
    """
    images = samples.test.images[samples.shown]
    output: BackboneOutput = encode.once("shown", lambda: encode.outputs(images))
    given = output.tokens if capability == "tokens" else output.attention
    return (encode.ask(capability, images) if given is None else given).cpu()  # `ask` says why there is none


def _test_images(run: SavedRun) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a random part of the test split; reading stops when the time is over."""
    count = run.data.test_images
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    wanted = torch.zeros(count, dtype=torch.bool)
    wanted[order[:TEST_IMAGES]] = True
    began, at = time.monotonic(), 0
    images, labels = [], []
    for x, y in run.data.test(_BATCH):
        here = wanted[at : at + len(y)].to(y.device)
        images.append(x[here])
        labels.append(y[here])
        at += len(y)
        if time.monotonic() - began > SECONDS and any(map(len, labels)):
            break
    x, y = torch.cat(images), torch.cat(labels)
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)).to(y.device)
    return zip(x[mixed].split(_BATCH), y[mixed].split(_BATCH), strict=True)


def _encoded(encode: Encoder, batches: Iterator[tuple[Tensor, Tensor]], whole: int) -> Split:
    images, labels, features = [], [], []
    began = time.monotonic()
    for x, y in batches:
        features.append(F.normalize(encode(x), dim=-1).cpu())
        images.append(x.cpu())
        labels.append(y.cpu())
        if time.monotonic() - began > SECONDS:
            break
    return Split(torch.cat(images), torch.cat(labels), torch.cat(features), whole)


def _one_of_each(labels: Tensor) -> Tensor:
    """Positions of images of different classes, as far as there are classes enough."""
    first = {int(label): i for i, label in reversed(list(enumerate(labels.tolist())))}
    chosen = [first[label] for label in sorted(first)]
    chosen += [i for i in range(len(labels)) if i not in chosen]
    return torch.tensor(chosen[:SHOWN], dtype=torch.int64)
