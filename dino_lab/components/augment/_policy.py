"""A list of operations on the views of one group, turned into few passes over the crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_lab.building.seeding import drawing_from
from dino_lab.errors import UserError, first_line
from dino_lab.kernels.crops.colour import SATURATION
from dino_lab.kernels.crops.passes import COLOURS, change, make
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.protocols import Fuses, Operation, ability
from dino_lab.registry.discovery import BUILT_IN
from dino_lab.types import Images, WholeImages

# What one pass of the crops' own kernels computes, in this order, each at most once.
STEPS = ("crop", "flip", "rotate", "jitter", "grey", "blur", "solarize")
# What Kornia raises for crops that it cannot change, such as a grey one whose hue is asked for.
KORNIAS = (ValueError, TypeError, RuntimeError, AssertionError, ImportError, IndexError, KeyError)


@dataclass(frozen=True)
class Share:
    """Which images of a batch are given: `batch` images in all, and from where to where those here stand."""

    views: int
    batch: int
    images: slice

    def of(self, parameter: Tensor) -> Tensor:
        """[V * batch, ...] to [V, images, ...]."""
        return parameter.unflatten(0, (self.views, self.batch))[:, self.images]

    def sizes(self, images: WholeImages) -> Tensor:
        """Height and width, int64 [V * batch, 2], of the image of every crop; 1 where it is not here."""
        sizes = torch.ones(self.batch, 2, dtype=torch.int64)
        sizes[self.images] = images.sizes
        return sizes.repeat(self.views, 1)


@dataclass(frozen=True)
class FusedPass:
    """Operations that the crops' own kernels compute at once."""

    size: int
    operations: tuple[Any, ...]

    @property
    def cuts(self) -> bool:
        """Whether it begins with a crop."""
        return bool(self.operations[0].step == "crop")

    def sample(self, shape: tuple[int, ...], share: Share, sizes: Tensor | None = None) -> SampledParameters:
        """The parameters of the crops here, drawn for the whole batch of shape [V * batch, C, H, W].

        `sizes` int64 [V * batch, 2] are the heights and widths of images that are not all alike.
        """
        drawn: dict[str, Tensor] = {}
        for operation in self.operations:
            if sizes is not None and operation.step == "crop":
                drawn |= operation.generate_within(sizes)
            else:
                drawn |= operation.generate_parameters(shape)
        return SampledParameters(**{key: share.of(value) for key, value in drawn.items()})

    def __call__(self, x: Images, share: Share, generator: torch.Generator) -> Tensor:
        """Images uint8 [B, C, H, W] or of many sizes, or crops float32 [V * B, C, H, W], to crops float32."""
        N, sizes = share.views * share.batch, None
        if isinstance(x, WholeImages):
            shape, sizes = (N, x.channels, self.size, self.size), share.sizes(x)
        else:
            shape = (N, *x.shape[1:])
        with drawing_from(generator):
            sampled = self.sample(shape, share, sizes)
        radius = max(
            (operation.radius for operation in self.operations if operation.step == "blur"), default=0
        )
        if sampled.boxes is not None:
            return make(x, sampled, self.size, radius).flatten(0, 1)
        return change(as_crops(x, share.views), sampled, radius)


@dataclass(frozen=True)
class KorniaPass:
    """One operation as Kornia computes it, on the crops that drew it."""

    name: str
    operation: Operation

    cuts = False  # images of one size alone

    def __call__(self, x: Images, share: Share, generator: torch.Generator) -> Tensor:
        """As `FusedPass`; a UserError where Kornia refuses the crops."""
        x = as_crops(x, share.views)
        shape = (share.views * share.batch, *x.shape[1:])
        try:
            with drawing_from(generator):
                drawn = self.operation.forward_parameters(shape)
            return self._apply(x, self._of_share(drawn, shape, share))
        except KORNIAS as error:
            raise UserError(
                f"operation {self.name!r} refuses crops of {shape[-2]} x {shape[-1]} pixels and "
                f"{shape[1]} channels: {first_line(error)}"
            ) from error

    def _of_share(self, drawn: dict[str, Any], shape: tuple[int, ...], share: Share) -> dict[str, Any]:
        """The parameters of the crops here; what is no number of each crop is the same for all."""
        if share.images == slice(0, share.batch):
            return drawn
        each = self._drawn_for_each(shape)
        own = {key: share.of(v).flatten(0, 1) if key in each else v for key, v in drawn.items()}
        own["forward_input_shape"] = torch.tensor([len(own["batch_prob"]), *shape[1:]])
        numbers = torch.arange(shape[0])
        for key in each:  # one that numbers the crops numbers those here
            if drawn[key].numel() == len(numbers) and torch.equal(drawn[key].flatten(), numbers):
                own[key] = numbers[: len(own[key])].view_as(own[key])
        return own

    def _drawn_for_each(self, shape: tuple[int, ...]) -> frozenset[str]:
        """The parameters whose length is that of the batch, found by drawing for two lengths."""
        with drawing_from(torch.Generator().manual_seed(0)):
            one, other = (self.operation.forward_parameters((N, *shape[1:])) for N in (5, 7))
        return frozenset(key for key in one if _length(one[key]) == 5 and _length(other[key]) == 7)

    def _apply(self, x: Tensor, params: dict[str, Any]) -> Tensor:
        if not bool((params["batch_prob"] > 0.5).any()):
            return x
        return self.operation.forward(x, params=params).clamp(0, 1)


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, Tensor) and value.ndim else None


def as_crops(x: Images, views: int) -> Tensor:
    """Images uint8 [B, C, H, W] as float32 [V * B, C, H, W] in 0..1, each V times; crops as they are."""
    assert isinstance(x, Tensor), "a policy whose first pass cuts nothing refuses others"
    return x if x.dtype != torch.uint8 else (x.float() / 255).repeat(views, 1, 1, 1)


class Policy:
    """Operations for `views` views of `size` pixels; parameters are drawn for every crop by itself.

    The operations happen in the order of the list. Neighbours that follow `STEPS` are one pass of the
    kernels of `kernels.crops`; any other is computed by Kornia.
    """

    def __init__(self, views: int, size: int, operations: Sequence[tuple[str, Operation]]) -> None:
        self.views, self.size, self.operations = views, size, tuple(operations)
        self.passes = _planned(size, self.operations)
        self._of_colours = _of_colours(self.operations)

    @property
    def is_fused(self) -> bool:
        """Whether the crops' own kernels compute all of it."""
        return all(isinstance(part, FusedPass) for part in self.passes)

    @torch.no_grad()
    def __call__(
        self, images: Images, generator: torch.Generator, batch: int | None = None, first: int = 0
    ) -> Tensor:
        """Images uint8 [B, C, H, W] or of many sizes to crops float32 [V, B, C, size, size] in 0..1.

        Where they are some of a `batch`, from position `first` on, parameters are sampled for all of it. A
        UserError where the operations cannot take them.
        """
        B, C = len(images), _channels(images)
        if isinstance(images, WholeImages) and not self.passes[0].cuts:
            raise UserError(
                f"augment: images of many sizes (data.crops: full) are cut first; {self.operations[0][0]} "
                "comes before any crop"
            )
        if C not in COLOURS and self._of_colours:
            raise UserError(
                f"augment: {', '.join(self._of_colours)} are of grey or RGB images, and these have {C} "
                "channels; leave them out, or set their strength or probability to 0"
            )
        share = Share(self.views, B if batch is None else batch, slice(first, first + B))
        with torch.autocast(images.device.type, enabled=False):
            x = self.passes[0](images, share, generator)
            for part in self.passes[1:]:
                x = part(x, share, generator)
        if x.shape[1:] != (C, self.size, self.size):
            raise UserError(
                f"augment: the operations ({', '.join(name for name, _ in self.operations)}) give crops "
                f"{list(x.shape[1:])}; they should be [{C}, {self.size}, {self.size}], as `crop` makes them"
            )
        return x.view(self.views, B, *x.shape[1:])


def _planned(size: int, operations: Sequence[tuple[str, Operation]]) -> list[FusedPass | KorniaPass]:
    passes: list[FusedPass | KorniaPass] = []
    last = len(STEPS)  # the place in a fused pass of the operation before
    for name, operation in operations:
        step = _step(operation)
        if step is None:
            passes.append(KorniaPass(name, operation))
        elif last < step and isinstance(before := passes[-1], FusedPass):
            passes[-1] = FusedPass(size, (*before.operations, operation))
        else:
            passes.append(FusedPass(size, (operation,)))
        last = len(STEPS) if step is None else step
    return passes


def _step(operation: Any) -> int | None:
    """The operation's place in a fused pass; None where Kornia computes it.

    A plugin may derive from an operation of this package and compute something else.
    """
    fuses = ability(operation, Fuses)
    if fuses is None or not type(operation).__module__.startswith(BUILT_IN):
        return None
    return STEPS.index(fuses.step)


def _channels(images: Images) -> int:
    """Number of channels; a UserError where they are no images."""
    if isinstance(images, WholeImages):
        return images.channels
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.shape[1]:
        raise UserError(
            f"augment: images must be uint8 [B, C, H, W], got {images.dtype} {list(images.shape)}".replace(
                "torch.", ""
            )
        )
    return images.shape[1]


def _of_colours(operations: Sequence[tuple[str, Any]]) -> tuple[str, ...]:
    """The operations of this package that ask which band is which colour, in the words of `views`."""
    found: list[str] = []
    for name, operation in operations:
        if _step(operation) is None:
            continue
        if name == "jitter":
            given = {"saturation": operation.strengths[SATURATION], "hue": operation.hue}
            found += [f"jitter's {key}" for key, strength in given.items() if strength]
        elif name in ("grey", "solarize") and np.any(operation.probability):
            found.append(name)
    return tuple(found)
