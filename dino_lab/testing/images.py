"""How data and augmentations are tried."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

import torch
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.protocols import (
    CropsShares,
    GivesAnnotations,
    GivesSegments,
    GivesShares,
    HasClassNames,
    SharedData,
    ability,
)
from dino_lab.testing.tested_component import pictures
from dino_lab.testing.trial import Size, Stateless, same
from dino_lab.types import VOID, Images, Views, WholeImages

MOST_IMAGES = 1000  # a larger training split is not read as a whole


class DataTrial(Stateless):
    """Labelled images, in an order that (seed, epoch) decides."""

    sizes: ClassVar = [(2,), (3,)]  # B
    randomness = "the seed that `train` is given"

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """The device."""
        return (device,)

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The first batches of each iterator."""
        (B,) = size
        self.expect(
            min(part.train_images, part.test_images) >= 3,
            "has fewer than 3 images; give it more to be tried with",
        )
        said = []
        for name, batches, arguments in (
            ("train", part.train, (B, 0, 0)),
            ("test", part.test, (B,)),
            ("bank", part.bank, (B,)),
        ):
            with self.subject.trying(f"{name}{arguments}", "it should give batches"):
                for images, labels in islice(batches(*arguments), 2 if name == "train" else 1):
                    self._check_batch(part, name, images, labels, B, device)
                    said += [*images, labels]
        return said

    def rules(self) -> None:
        """Epochs, steps to start from, and splits that are given once."""
        part = self.make(self.sizes[0])
        C = part.channels
        self.expect(
            len(part.mean) == len(part.std) == C and min(part.std) > 0,
            f"its mean is {part.mean} and its std {part.std}; each should be {C} numbers, std above 0",
        )
        third = next(islice(part.train(2, 0, 0), 2, None))
        begun = next(part.train(2, 0, 2))
        self.expect(
            _same_batch(third, begun),
            "train(2, 0, start=2) does not begin with the third batch of train(2, 0, start=0); it should go "
            "on where a run was stopped",
        )
        steps = part.train_images // 2
        across = list(islice(part.train(2, 0, steps - 1), 2))
        self.expect(
            [len(images) for images, _ in across] == [2, 2],
            "train ends or gives an incomplete batch at the end of an epoch; it should go on without end",
        )
        if (reading := ability(part, GivesShares)) is not None:
            self._check_share(reading)
        if (shared := ability(part, SharedData)) is not None and shared.resident:
            other = self.make(self.sizes[0], seed=1)
            self.expect(
                all(torch.equal(next(part.test(7))[i], next(other.test(7))[i]) for i in (0, 1)),
                "says that it is resident, and has other images with another seed; runs with the same "
                "parameters share it, so its images should depend on its parameters alone",
            )
        if part.train_images <= MOST_IMAGES:
            self._check_splits(part)
        if (named := ability(part, HasClassNames)) is not None:
            count = len(named.class_names)
            self.expect(
                count == part.classes,
                f"has {count} class_names; it should have one for each of its {part.classes} classes",
            )
        if (annotated := ability(part, GivesAnnotations)) is not None:
            self._check_annotations(annotated)

    def _check_share(self, part: GivesShares) -> None:
        """Some images of a batch are those that the whole batch has there."""
        with self.subject.trying(
            "train_share(3, 0, 0, slice(1, 3))", "it should give some images of batches"
        ):
            some = next(part.train_share(3, 0, 0, slice(1, 3)))
        images, labels = next(part.train(3, 0, 0))
        self.expect(
            _same_batch(some, (images[1:3], labels[1:3])),
            "train_share(3, 0, 0, slice(1, 3)) gives other images or labels than train(3, 0, 0) has there",
        )

    def _check_annotations(self, part: GivesAnnotations) -> None:
        """Shapes, and the images of the test split by their indices."""
        rows, square = torch.tensor([2, 0]), [2, part.size, part.size]
        with self.subject.trying("annotated('test', [2, 0])", "it should give images, masks and boxes"):
            try:
                images, labels, masks, parts, boxes = part.annotated("test", rows)
            except UserError:  # data that have masks with other parameters only
                return
        self._check_tensor("annotated", "images", images, torch.uint8, [2, part.channels, *square[1:]])
        self._check_tensor("annotated", "labels", labels, torch.int64, [2])
        self._check_tensor("annotated", "masks", masks, torch.bool, square)
        self._check_tensor("annotated", "parts", parts, torch.uint8, square)
        self._check_tensor("annotated", "boxes", boxes, torch.int64, [2, 4])
        test, truth = next(part.test(3))
        self.expect(
            torch.equal(images, test[rows]) and torch.equal(labels, truth[rows]),
            "annotated('test', [2, 0]) has other images or labels than test has at these places",
        )
        if (segmented := ability(part, GivesSegments)) is None:
            return
        with self.subject.trying("segmented('test', [2, 0])", "it should give objects and their classes"):
            objects, classes = segmented.segmented("test", rows)
        self._check_tensor("segmented", "objects", objects, torch.uint8, square)
        self._check_tensor("segmented", "classes", classes, torch.uint8, square)
        self.expect(
            bool(((classes <= part.classes) | (classes == VOID)).all()),
            f"segmented gives a class above {part.classes}; they should be labels + 1, 0 or {VOID}",
        )

    def _check_tensor(self, method: str, name: str, found: Any, dtype: torch.dtype, shape: list[int]) -> None:
        right = f"they should be {dtype} {shape} on the CPU"
        if not isinstance(found, Tensor):
            self.subject.fail(f"{method} gives {name} of the type {type(found).__name__}; {right}")
        self.expect(
            found.dtype == dtype and list(found.shape) == shape and found.device.type == "cpu",
            f"{method} gives {name} {found.dtype} {list(found.shape)} on {found.device}; {right}",
        )

    def _check_splits(self, part: Any) -> None:
        for name, batches, images in (
            ("test", part.test, part.test_images),
            ("bank", part.bank, part.train_images),
        ):
            count = sum(len(labels) for _, labels in batches(7))
            self.expect(
                count == images, f"{name} gives {count} images; it should give each of the {images} once"
            )
        epoch = torch.cat([labels for _, labels in islice(part.train(1, 0, 0), part.train_images)])
        bank = torch.cat([labels for _, labels in part.bank(7)])
        self.expect(
            torch.equal(epoch.sort().values, bank.sort().values),
            "an epoch of train has other labels than bank; it should have each training image once",
        )

    def _check_batch(
        self, part: Any, name: str, images: Images, labels: Tensor, B: int, device: torch.device
    ) -> None:
        shape = (B, part.channels, part.size, part.size)
        if isinstance(images, WholeImages):
            self.expect(
                name == "train" and getattr(part, "whole", False),
                f"{name} gives images of many sizes; train alone may do so, where `whole` is true",
            )
            images = torch.empty(
                len(images), images.channels, *shape[2:], dtype=images.pixels.dtype, device=images.device
            )
        self.expect(
            images.dtype == torch.uint8 and tuple(images.shape) == shape and images.device == device,
            f"{name} gives images {images.dtype} {list(images.shape)} on {images.device}; they should be "
            f"uint8 {list(shape)} on {device}",
        )
        self.expect(
            labels.dtype == torch.int64 and tuple(labels.shape) == (B,) and labels.device == device,
            f"{name} gives labels {labels.dtype} {list(labels.shape)} on {labels.device}; they should be "
            f"int64 [{B}] on {device}",
        )
        self.expect(
            bool(((labels >= 0) & (labels < part.classes)).all()),
            f"{name} gives a label outside 0..{part.classes - 1}; labels should be below its classes",
        )


def _same_batch(one: tuple[Images, Tensor], other: tuple[Images, Tensor]) -> bool:
    images = zip(one[0], other[0], strict=True)
    return torch.equal(one[1], other[1]) and all(torch.equal(a, b) for a, b in images)


class AugmentTrial(Stateless):
    """Images uint8 [B, C, H, W] to crops."""

    sizes: ClassVar = [(2, 32), (3, 33), (2, 48)]  # B, pixels
    randomness = "the generator that forward is given"

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The crops."""
        images = pictures(*size).to(device)
        generator = torch.Generator().manual_seed(0)
        with self.subject.trying(f"forward of images {list(images.shape)}", "it should return Views"):
            views = part.forward(images, generator)
        self.expect(
            torch.equal(images, pictures(*size).to(device)),
            "changes the images in place; it should make new tensors",
        )
        self._check_views(part, views, len(images), device)
        return list(views.crops)

    def rules(self) -> None:
        """Crops of some images of a batch are those that they get among all."""
        part = self.make(self.sizes[0])
        if (cropping := ability(part, CropsShares)) is None:
            return
        images, generators = pictures(5, 32), [torch.Generator().manual_seed(0) for _ in range(2)]
        whole = part.forward(images, generators[0]).crops
        with self.subject.trying("forward_share of 2 of 5 images", "it should return their Views"):
            some = cropping.forward_share(images[2:4], generators[1], 5, 2).crops
        self.expect(
            same(list(some), [crops[:, 2:4] for crops in whole]),
            "forward_share gives some images other crops than forward gives them; random numbers should be "
            "drawn for the whole batch, or the method be left out",
        )

    def _check_views(self, part: Any, views: Any, B: int, device: torch.device) -> None:
        if not isinstance(views, Views):
            self.subject.fail(f"forward is of the type {type(views).__name__}; it should be Views")
        shapes = [[V, B, 3, pixels, pixels] for V, pixels in part.groups]
        found = [list(crop.shape) for crop in views.crops]
        self.expect(
            found == shapes, f"gives crops {found}; after its groups {part.groups} it should be {shapes}"
        )
        for crop in views.crops:
            self.expect_output(crop, tuple(crop.shape), "a crop", device)
            low, high = crop.min().item(), crop.max().item()
            self.expect(
                low >= 0 and high <= 1,
                f"gives crops from {low:g} to {high:g}; they should lie between 0 and 1",
            )
        shape = (sum(V for V, _ in part.groups), part.groups[0][0])
        pairs = views.pairs
        self.expect(
            torch.equal(pairs, part.pairs) and tuple(pairs.shape) == shape and pairs.dtype == torch.int8,
            f"gives pairs {pairs.dtype} {list(pairs.shape)}; they should be its own, int8 {list(shape)}",
        )
        self.expect(
            bool((pairs > 0).any()) and bool((pairs.abs() <= 1).all()),
            "its pairs should be -1, 0 and 1, one of them at least 1",
        )


class OperationTrial(Stateless):
    """Crops float32 [N, C, H, W] in 0..1 to changed ones."""

    sizes: ClassVar = [(4, 32), (3, 33), (2, 48)]  # N, pixels
    randomness = "torch's global generator, in forward_parameters alone"

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """The side of the group's crops."""
        return (size[1],)

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The changed crops."""
        crops = pictures(*size).to(device) / 255
        shape, before = tuple(crops.shape), crops.clone()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            with self.subject.trying(f"forward_parameters({shape})", "it should return a dict of tensors"):
                params = part.forward_parameters(shape)
            state = torch.get_rng_state()
            with self.subject.trying(f"forward of crops {list(shape)}", "it should return crops"):
                changed = part.forward(crops, params=params)
            drew = not torch.equal(state, torch.get_rng_state())
        self.expect(not drew, f"draws in forward; its random numbers should come from {self.randomness}")
        self.expect(torch.equal(crops, before), "changes the crops in place; it should make new tensors")
        changed = self.expect_output(changed, shape, "the result", device)
        low, high = changed.min().item(), changed.max().item()
        self.expect(
            low >= 0 and high <= 1, f"gives crops from {low:g} to {high:g}; they should lie between 0 and 1"
        )
        return [changed]
