"""A frozen network, as evaluators ask it: the `FeatureExtractor` of protocols.py."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lab.errors import UserError, first_line
from dino_lab.evaluation.outputs import LACKS, REPRESENTATIONS, MaskedImages, Representation, Split
from dino_lab.network import Network
from dino_lab.protocols import GivesAttention, GivesOutputs, GivesSegments, GivesTokens, ability, method
from dino_lab.types import BackboneOutput

T = TypeVar("T")
BATCH = 256  # images in one forward
PIXELS = BATCH * 224**2  # of them together, so that large images are fewer
BLOCKS = 4  # of the last ones, whose CLS token is kept: DINO, arXiv 2104.14294, appendix F.2


def in_unit_range(images: Tensor, size: int | None) -> Tensor:
    """Uint8 images [N, C, H, W] as floats in 0..1, of `size` pixels a side or as they are."""
    x = images.float() / 255
    if size is None or x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)


@dataclass(frozen=True)
class Encoder:
    """Uint8 images [B, C, H, W] to float32 features [B, D], and to the other outputs of the backbone.

    Images may lie on any device; they are resized to `size`, that of the teacher's crops. No gradient flows,
    and the network is in evaluation mode as long as an evaluator has the encoder. Its outputs for a whole
    split are kept, for all evaluators of a pass: each image goes through the network once.
    """

    network: Network
    size: int
    autocast: Callable[[], AbstractContextManager[object]]
    wants: frozenset[Representation] = frozenset({"features"})  # those that evaluators of this pass will read
    resizes: bool = True  # or images are seen as they are
    _kept: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D]."""
        return self._give(self.network.encode, images).float()

    def ask(self, capability: str, images: Tensor) -> Tensor:
        """What the backbone's method of that name returns, as `tokens`; a UserError where it has none."""
        backbone, normalize = self.network.backbone, self.network.normalize
        if (asked := method(backbone, capability)) is None:
            raise UserError(f"the backbone, {type(backbone).__name__}, gives no {capability}")
        return self._give(lambda x: asked(normalize(x)), images).float()

    def outputs(self, images: Tensor) -> BackboneOutput:
        """Features, blocks, tokens and attention, as far as the backbone has them.

        In one forward where it `GivesOutputs`; otherwise without blocks, in a forward for each.
        """
        backbone, normalize = self.network.backbone, self.network.normalize
        if (whole := ability(backbone, GivesOutputs)) is not None:
            output: BackboneOutput = self._give(lambda x: whole.outputs(normalize(x), BLOCKS), images)
            return output.float()
        tokens = self.ask("tokens", images) if ability(backbone, GivesTokens) else None
        attention = self.ask("attention", images) if ability(backbone, GivesAttention) else None
        return BackboneOutput(self(images), None, tokens, attention)

    def at(self, pixels: int | None, channels: int) -> Encoder:
        """The same network, shown images of so many pixels a side, or with None as here.

        A UserError where its backbone refuses them, tried with an empty image of so many channels.
        """
        if pixels is None or pixels == self.size:
            return self
        return self.once(("at", pixels), lambda: self._resized(pixels, channels))

    def _resized(self, pixels: int, channels: int) -> Encoder:
        other = replace(self, size=pixels, _kept={})
        try:
            other.outputs(torch.zeros(1, channels, pixels, pixels, dtype=torch.uint8))
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
        """The result of `make`, which is called once in a pass for all that ask with the same key."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept

    def split(self, data: Any, name: Literal["bank", "test"]) -> Split:
        """Labels of the training (`bank`) or test split of a `Data`, and the representations in `wants`.

        A UserError where they are not finite, or the backbone does not give one of them.
        """
        seen: MaskedImages | None = self._kept.get("annotated") if name == "test" else None
        batches = data.bank if name == "bank" else data.test
        return self.once(name, lambda: self._collect(batches(BATCH), None if seen is None else seen.output))

    def annotated(self, data: Any, count: int | None) -> MaskedImages:
        """The first `count` test images of `data.annotated`, or with None all, and the outputs for them.

        Outputs for fewer of them are not computed again. A UserError where there are not so many.
        """
        count = data.test_images if count is None else count
        if count > data.test_images:
            raise UserError(
                f"images = {count} is more than the {data.test_images} test images; null takes all of them"
            )
        most: MaskedImages | None = self._kept.get("annotated")
        known = 0 if most is None else len(most.labels)
        if count > known:
            more = [
                self._annotate(data, indices)
                for indices in torch.arange(known, count).split(max(1, min(BATCH, PIXELS // self.size**2)))
            ]
            most = self._kept["annotated"] = MaskedImages.cat([*([] if most is None else [most]), *more])
        assert most is not None
        return most if count == len(most.labels) else most.first(count)

    def _annotate(self, data: Any, indices: Tensor) -> MaskedImages:
        images, labels, masks, parts, boxes = data.annotated("test", indices)
        if (segmented := ability(data, GivesSegments)) is not None:
            objects, classes = segmented.segmented("test", indices)
        else:
            objects = masks.to(torch.uint8)
            classes = objects * (labels.to(torch.uint8) + 1)[:, None, None]
        output = self.outputs(images).to(torch.device("cpu"))
        return MaskedImages(images, labels, masks, parts, boxes, objects, classes, output)

    def _collect(self, batches: Iterator[tuple[Tensor, Tensor]], known: BackboneOutput | None) -> Split:
        kept: dict[Representation, list[Tensor]] = {name: [] for name in sorted(self.wants)}
        labels: list[Tensor] = []
        start = 0
        for images, label in batches:
            some = None if known is None else known[start : start + len(images)]
            start += len(images)
            for output in self._completed(images, some):
                for name, values in kept.items():
                    values.append(self._represent(name, output))
            labels.append(label.to(self.network.mean.device))
        return Split(torch.cat(labels), {name: torch.cat(values) for name, values in kept.items()})

    def _completed(self, images: Tensor, known: BackboneOutput | None) -> Iterator[BackboneOutput]:
        """The outputs that are known, of the first of the images, and those for the rest."""
        count = 0 if known is None else len(known.features)
        if known is not None and count:
            yield known.to(self.network.mean.device)
        if count < len(images):
            rest = images[count:]
            yield BackboneOutput(self(rest)) if self.wants <= {"features"} else self.outputs(rest)

    def _represent(self, name: Representation, output: BackboneOutput) -> Tensor:
        value = REPRESENTATIONS[name](output)
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
