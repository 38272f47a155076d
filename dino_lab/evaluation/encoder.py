"""A frozen network, as evaluators ask it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.network import Network
from dino_lab.types import Look

T = TypeVar("T")
BATCH = 256  # images looked at at once
PIXELS = BATCH * 224**2  # of them together, so that large images are fewer
BLOCKS = 4  # of the last ones, whose CLS token is kept: DINO, arXiv 2104.14294, appendix F.2
GEM_POWER = 4.0  # of generalised-mean pooling: arXiv 2104.14294, Sec. 4.2.1
GEM_LEAST = 1e-6  # tokens are clamped to it first

# What may be kept of each image of a split, by name: [N, D] each, but for `blocks`, [N, blocks, D].
REPRESENTATIONS: dict[str, Callable[[Look], Tensor | None]] = {
    "features": lambda look: look.features,
    "blocks": lambda look: look.blocks,
    "mean_tokens": lambda look: None if look.tokens is None else look.tokens.mean((2, 3)),
    "gem_tokens": lambda look: None if look.tokens is None else generalised_mean(look.tokens),
}

# What a backbone that does not give one has not got.
LACKS = {
    "blocks": "CLS token in each block, as a vision transformer has",
    "mean_tokens": "patch tokens",
    "gem_tokens": "patch tokens",
}


def generalised_mean(tokens: Tensor) -> Tensor:
    """Tokens [N, D, h, w] to [N, D]: the root of the mean of their powers (GeM, arXiv 1711.02512, eq. 3)."""
    return tokens.clamp_min(GEM_LEAST).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


def in_unit_range(images: Tensor, size: int | None) -> Tensor:
    """Uint8 images [N, C, H, W] as floats in 0..1, of `size` pixels a side or as they are."""
    x = images.float() / 255
    if size is None or x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class Split:
    """What a network makes of a split, in order, on the network's device."""

    labels: Tensor  # int64 [N]
    representations: dict[str, Tensor]  # float32, by names of REPRESENTATIONS

    @property
    def features(self) -> Tensor:
        """[N, D]."""
        return self.representations["features"]

    def __getitem__(self, name: str) -> Tensor:
        return self.representations[name]


@dataclass(frozen=True)
class Annotated:
    """Test images with what is in them, on the CPU, and how the network looks at them."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    masks: Tensor  # bool [N, H, W], of the object
    parts: Tensor  # uint8 [N, H, W], 0 background
    boxes: Tensor  # int64 [N, 4], x0 y0 x1 y1, the last two exclusive
    objects: Tensor  # uint8 [N, H, W], 0 background, 1, 2, ... the objects, 255 void
    classes: Tensor  # uint8 [N, H, W], 0 background, the label of the object + 1, 255 void
    look: Look  # of all images, on the CPU

    def first(self, count: int) -> Self:
        """The first `count` of them."""
        values: dict[str, Any] = {f.name: getattr(self, f.name)[:count] for f in fields(self)}
        return type(self)(**values)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Several as one."""
        columns = {f.name: [getattr(part, f.name) for part in parts] for f in fields(cls)}
        look = Look.cat(columns.pop("look"))
        tensors: dict[str, Any] = {name: torch.cat(values) for name, values in columns.items()}
        return cls(**tensors, look=look)


@dataclass(frozen=True)
class Encoder:
    """Uint8 images [B, C, H, W] to float32 features [B, D], and to what else the backbone can give.

    Images may lie on any device; they are resized to `size`, that of the teacher's crops. No gradient flows,
    and the network is in evaluation mode as long as an evaluator has the encoder. What it says of a whole
    split is kept, for all evaluators of a pass: each image goes through the network once.
    """

    network: Network
    size: int
    autocast: Callable[[], AbstractContextManager[object]]
    wants: frozenset[str] = frozenset({"features"})  # what evaluators of this pass will ask of a split
    resizes: bool = True  # or images are seen as they are
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D]."""
        return self._give(self.network.encode, images).float()

    def ask(self, capability: str, images: Tensor) -> Tensor:
        """What the backbone's method of that name gives, such as `tokens`; a UserError where it has none."""
        backbone, normalize = self.network.backbone, self.network.normalize
        if not hasattr(backbone, capability):
            raise UserError(f"the backbone, {type(backbone).__name__}, gives no {capability}")
        return self._give(lambda x: getattr(backbone, capability)(normalize(x)), images).float()

    def look(self, images: Tensor) -> Look:
        """Features, and blocks, tokens and attention where the backbone has a `look`, in one forward."""
        backbone: Any = self.network.backbone
        if not hasattr(backbone, "look"):
            given = [name for name in ("tokens", "attention") if hasattr(backbone, name)]
            return Look(self(images), **{name: self.ask(name, images) for name in given})
        look: Look = self._give(lambda x: backbone.look(self.network.normalize(x), BLOCKS), images)
        return look.float()

    def at(self, pixels: int | None, channels: int) -> Encoder:
        """The same network, shown images of so many pixels a side, or as they were.

        A UserError where its backbone refuses them, tried with an empty image of so many channels.
        """
        if pixels is None or pixels == self.size:
            return self
        return self.once(("at", pixels), lambda: self._resized(pixels, channels))

    def _resized(self, pixels: int, channels: int) -> Encoder:
        other = replace(self, size=pixels, _kept={})
        try:
            other.look(torch.zeros(1, channels, pixels, pixels, dtype=torch.uint8))
        except Exception as error:  # each of timm's models has its own way to refuse
            name = type(self.network.backbone).__name__
            raise UserError(
                f"pixels = {pixels}: the backbone, {name}, refuses them: {first_line(error)}"
            ) from error
        return other

    def unresized(self) -> Encoder:
        """The same network, seeing images as they are, which may be of any height and width that it takes."""
        return replace(self, resizes=False, _kept={})

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` gives, made once in a pass for all who ask by the same key."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def split(self, data: Any, name: Literal["bank", "test"]) -> Split:
        """What is wanted of each image of the training (`bank`) or test split of a `Data`.

        A UserError where it is not finite, or the backbone does not give it.
        """
        seen: Annotated | None = self._kept.get("annotated") if name == "test" else None
        return self.once(
            name, lambda: self._collect(getattr(data, name)(BATCH), None if seen is None else seen.look)
        )

    def annotated(self, data: Any, count: int | None) -> Annotated:
        """The first `count` test images of `data.annotated`, or all, looked at.

        What was looked at for fewer is not looked at again. A UserError where there are not so many.
        """
        count = data.test_images if count is None else count
        if count > data.test_images:
            raise UserError(
                f"images = {count} is more than the {data.test_images} test images; null takes all of them"
            )
        most: Annotated | None = self._kept.get("annotated")
        known = 0 if most is None else len(most.labels)
        if count > known:
            more = [
                self._annotate(data, indices)
                for indices in torch.arange(known, count).split(max(1, min(BATCH, PIXELS // self.size**2)))
            ]
            most = self._kept["annotated"] = Annotated.cat([*([most] if most is not None else []), *more])
        assert most is not None
        return most if count == len(most.labels) else most.first(count)

    def _annotate(self, data: Any, indices: Tensor) -> Annotated:
        images, labels, masks, parts, boxes = data.annotated("test", indices)
        if hasattr(data, "segmented"):
            objects, classes = data.segmented("test", indices)
        else:
            objects = masks.to(torch.uint8)
            classes = objects * (labels.to(torch.uint8) + 1)[:, None, None]
        look = self.look(images).to(torch.device("cpu"))
        return Annotated(images, labels, masks, parts, boxes, objects, classes, look)

    def _collect(self, batches: Iterator[tuple[Tensor, Tensor]], seen: Look | None) -> Split:
        kept: dict[str, list[Tensor]] = {name: [] for name in sorted(self.wants)}
        labels: list[Tensor] = []
        start = 0
        for images, label in batches:
            known = None if seen is None else seen[start : start + len(images)]
            start += len(images)
            for look in self._looks(images, known):
                for name, values in kept.items():
                    values.append(self._represent(name, look))
            labels.append(label.to(self.network.mean.device))
        return Split(torch.cat(labels), {name: torch.cat(values) for name, values in kept.items()})

    def _looks(self, images: Tensor, known: Look | None) -> Iterator[Look]:
        """What is known of the first of the images, and what the network makes of the rest."""
        count = 0 if known is None else len(known.features)
        if known is not None and count:
            yield known.to(self.network.mean.device)
        if count < len(images):
            rest = images[count:]
            yield Look(self(rest)) if self.wants <= {"features"} else self.look(rest)

    def _represent(self, name: str, look: Look) -> Tensor:
        value = REPRESENTATIONS[name](look)
        if value is None:
            kind = type(self.network.backbone).__name__
            raise UserError(f"the backbone, {kind}, gives no {name}: it has no {LACKS[name]}")
        if not value.isfinite().all():
            raise UserError(f"the {name} are not finite; the network has diverged")
        return value

    @torch.no_grad()
    def _give(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        x = images.to(self.network.mean.device)
        x = in_unit_range(x, self.size if self.resizes else None)
        try:
            with self.autocast():
                return function(x)
        except (AssertionError, RuntimeError, ValueError) as error:
            if self.resizes:  # to a size that was tried
                raise
            height, width = x.shape[-2:]
            raise UserError(
                f"the network cannot see images of {height} x {width} px: {first_line(error)}"
            ) from error
