"""The contract of each kind of component. Shape letters: see types.py.

`__init__` lists what the builder supplies; a component adds its own parameters after a `*`, and those are
what YAML may set. The registry refuses a class whose `__init__` or methods take other arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, Protocol

import torch
from torch import Tensor

from dino_lab.evaluation.encoder import Encoder
from dino_lab.network import Network
from dino_lab.types import Output, Views


class Data(Protocol):
    """Labelled images, uint8 [B, C, H, W] with labels int64 [B], on `device`.

    Data may also have, and an evaluator may ask for, images with what is in them, on the CPU:
        annotated(split, indices) -> (images, labels, object masks bool [N, H, W], part masks uint8 [N, H, W],
            boxes int64 [N, 4]), for indices int64 [N]; 0 is background in a part mask, 1, 2, ... the parts
        segmented(split, indices) -> (objects uint8 [N, H, W], classes uint8 [N, H, W]): the objects of an
            image one by one, 1, 2, ..., and their labels + 1; 0 is background, 255 counts as nothing.
            Without it the object mask is one object, of the image's label

    and, to report what was found and what was passed over, as files are often not what they seem:
        found() -> DataReport                      of imaging/report.py
        labels(split) -> int64 [N], on the CPU     so that evaluators which labels cannot serve are refused

    Runs with the same parameters share one instance that is `SharedData`, and says that it is resident.
    """

    classes: int  # labels are 0 .. classes - 1
    size: int  # H = W of every image
    channels: int
    train_images: int  # 0 where there is no training split: such data are to evaluate on only
    test_images: int
    mean: tuple[float, ...]  # per channel, of images in 0..1: what Network subtracts
    std: tuple[float, ...]

    def __init__(self, device: torch.device) -> None: ...
    def train(self, batch_size: int, seed: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches from step `start` on, without end: every epoch a new order, decided by (seed, epoch) alone;
        an incomplete last batch is dropped.
        """
        ...

    def test(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The test split once, in order."""
        ...

    def bank(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training split once, in order, unaugmented: what evaluators compare with."""
        ...


class SharedData(Data, Protocol):
    """Data whose images depend on the parameters alone, not on the run's seed, and never change."""

    @property
    def resident(self) -> bool:
        """Whether all images are in memory."""
        ...

    def to(self, device: torch.device) -> Data:
        """The same images for another device."""
        ...


class Augment(Protocol):
    """Images uint8 [B, C, H, W] to crops of them, on the images' device.

    Every random number comes from `generator`, which lives on the images' device, so that the crops of a
    step can be made again.
    """

    pairs: Tensor  # [S, T] int8, on the CPU until the module is moved (a buffer)
    groups: tuple[tuple[int, int], ...]  # (views, pixels) of each entry of Views.crops

    def __init__(self) -> None: ...
    def forward(self, images: Tensor, generator: torch.Generator) -> Views: ...


class Backbone(Protocol):
    """Normalised images [N, C, H, W] to features [N, D]; several sizes are allowed.

    A backbone may also have, and an evaluator may ask for:
        tokens(images) -> [N, D, h, w]             patch tokens
        attention(images) -> [N, heads, h, w]      last block, from CLS to the patches, rows summing to <= 1
        look(images, blocks) -> Look               features and, in the same forward, CLS of so many last
                                                   blocks, tokens and attention, as far as it has them
        checkpoint_gradients()                     keep activations between blocks only, from now on
        as_timm() -> (nn.Module, str)              the timm model inside, and the line that builds its like
        timm_config() -> (str, dict)               architecture and arguments of timm.create_model, as JSON
    """

    dim: int  # D

    def __init__(
        self, channels: int, size: int
    ) -> None: ...  # of the images; size is that of the largest crop
    def forward(self, images: Tensor) -> Tensor: ...


class Head(Protocol):
    """Features [N, in_dim] to [N, K]; also used as predictor, K to K.

    A head may name its `last_layer`, a module that `optim.freeze_last_layer` holds still at first.
    """

    dim: int  # K

    def __init__(self, in_dim: int) -> None: ...
    def forward(self, features: Tensor) -> Tensor: ...


class Teacher(Protocol):
    """What the student should agree with, [T, B, K], for the views in crops[0].

    A teacher may also have, and it is then called:
        check_classes(classes: int) -> None        ValueError where it cannot teach so many classes
        answer(output: Output) -> Tensor           what `forward` makes of the network's output for crops[0],
                                                   where it needs nothing else: the networks of several
                                                   runs are then computed at once
    """

    network: Network | None  # to evaluate; None if there is no network but the student

    def __init__(self, student: Network) -> None: ...
    def forward(self, views: Views, student: Output, labels: Tensor) -> Tensor: ...
    def update(self, student: Network, progress: float, ends_epoch: bool) -> None:
        """Called after each optimizer step; `ends_epoch` after the last one of an epoch."""
        ...


class Targets(Protocol):
    """The teacher's output [T, B, K] made into a target of the same shape."""

    distribution: bool  # each row of the target sums to 1, so that its entropy means something

    def __init__(self, dim: int) -> None: ...
    def forward(self, teacher: Tensor, progress: float) -> Tensor: ...


class Loss(Protocol):
    """Student [S, B, K], target [T, B, K] and pairs [S, T] to a scalar.

    A loss may also have:
        measure(student, target, pairs) -> dict[str, Tensor]   scalars for a row, such as an accuracy; called
                                                               before forward, and changes nothing
        check_pairs(pairs)                                     ValueError where they give nothing to learn
    """

    negatives: bool  # understands -1 pairs
    cross_entropy: bool  # the value is H(target, student), so that less the target's entropy it is a KL

    def __init__(self, dim: int) -> None: ...
    def forward(self, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor: ...


class Regularizer(Protocol):
    """What the student says about its views, in any precision, to a scalar that is added times `weight`."""

    weight: float

    def __init__(self) -> None: ...
    def forward(self, views: Views, student: Output) -> Tensor: ...


class Evaluator(Protocol):
    """Scores of frozen features, by name; the names are prefixed with the evaluator's.

    `encode` maps uint8 images [B, C, H, W] to features [B, D], in evaluation mode, without gradient, and
    `encode.ask("tokens", images)` to what else the backbone can give; `encode.split(data, "bank")` and
    `encode.annotated(data, count)` are computed once for all evaluators, and so is, by `encode.once`, what
    else has a key of its own. `encode.at(pixels, channels)` and `encode.unresized()` see other sizes. An
    evaluator may also have:
        wants: tuple[str, ...]                     what it asks of a split beside features: names of
                                                   encoder.REPRESENTATIONS
        needs: tuple[str, ...]                     such as `backbone.tokens` or `data.annotated`; a spec whose
                                                   components lack one is refused
        compares_labels: tuple[str, ...]           `train`, `test`: splits whose labels it compares; data with
                                                   one class there, or none in common, is refused
        files(encode, data) -> dict[str, bytes]    names and contents of what it leaves in the run's folder
    """

    every: int  # epochs between two evaluations
    of: Literal["teacher", "student"]  # whose features; the student's where the teacher has no network
    protocol: str  # name/version and every constant, in one line

    def __init__(self) -> None: ...
    def forward(self, encode: Encoder, data: Data) -> dict[str, float]: ...


PROTOCOLS: dict[str, type] = {
    "data": Data,
    "augment": Augment,
    "backbone": Backbone,
    "head": Head,
    "teacher": Teacher,
    "targets": Targets,
    "loss": Loss,
    "regularizer": Regularizer,
    "evaluator": Evaluator,
}
