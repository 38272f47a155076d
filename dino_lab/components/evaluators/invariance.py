"""How far features move when an image is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dino_lab.building.components import distinct
from dino_lab.components.evaluators._changes import CHANGES, ImageChange, by_operation
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import BATCH, Encoder
from dino_lab.imaging.pictures import figure_png
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register, registry
from dino_lab.registry.operations import OperationParams


def draw_curves(
    curves: Mapping[str, Sequence[float]], axes: Mapping[str, tuple[str, Sequence[float]]]
) -> bytes:
    """A PNG with one panel a change: relative distances over strengths; `axes` has the unit and strengths."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    highest = max(1.0, *(value for values in curves.values() for value in values))
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure(figsize=(2.6 * columns, 2.2 * rows + 0.3), layout="constrained", dpi=120)
        for i, (name, values) in enumerate(curves.items()):
            panel = figure.add_subplot(rows, columns, i + 1)
            unit, strengths = axes[name]
            panel.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
            panel.plot(strengths, values, "o-", color="tab:blue", markersize=3, clip_on=False)
            panel.set(title=name, xlabel=unit, ylim=(0, 1.05 * highest))
            if len(strengths) == 1:
                panel.set_xticks([])
            if i % columns == 0:
                panel.set_ylabel("relative distance")
        figure.suptitle("How far features move; 1 is the distance between two images", fontsize=9)
        return figure_png(figure)


LEAST = 1e-12  # distance between images that is divided by, where all features are the same


@register("evaluator", "invariance")
class Invariance:
    """Mean cosine distance of features to those of the changed image, over that between different images.

    Operations of a spec are measured as they are given: one with `p: 0.5` changes every second image.

    One score a change (crop, rotation, brightness, ...), the mean over its strengths: 0 where the features do
    not see the change, 1 where the changed image is as far as another one. A UserError where there are fewer
    than two test images, or they have neither one nor three channels.
    """

    def __init__(
        self,
        *,
        images: Annotated[
            int, Field(ge=2, description="images drawn from the test split; all, where there are fewer")
        ] = 500,
        seed: Annotated[
            int, Field(ge=0, lt=2**32, description="of the choice of images, the places of crops, and noise")
        ] = 0,
        ops: Annotated[
            tuple[OperationParams, ...],
            Field(description="operations measured besides, as in the lists of augmentation `views`"),
        ] = (),
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.images, self.seed, self.operations = images, seed, ops
        self.every, self.of = options.every, options.of
        self._found: tuple[Encoder, dict[str, Any]] | None = None  # between `forward` and `files`

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        strengths = "; ".join(
            f"{name} {','.join(f'{s:g}' for s in change.strengths)}" for name, change in CHANGES.items()
        )
        for params in self.operations:
            strengths += f"; {params.model_dump_json()}"
        return (
            f"invariance/1: {self.images} test images, drawn, seed {self.seed}, mean cosine distance to the "
            f"changed image over that between all pairs of images, mean over strengths ({strengths}), of the "
            f"{self.of} in evaluation mode"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """One score a change."""
        found = self._measure(encode, data)
        self._found = encode, found
        return {name: sum(curve) / len(curve) for name, curve in found["curves"].items()}

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """The curves as a picture and as numbers."""
        kept, self._found = self._found, None
        found = kept[1] if kept is not None and kept[0] is encode else self._measure(encode, data)
        axes = {name: (change.unit, change.strengths) for name, change in self._changes(data).items()}
        changes = {  # the columns of each are what a report makes a chart of
            name: {axes[name][0]: axes[name][1], "relative distance": curve}
            for name, curve in found["curves"].items()
        }
        numbers = {"images": found["images"], "distance_between_images": found["between"], **changes}
        return {
            "invariance.json": (json.dumps(numbers, indent=2) + "\n").encode(),
            "curves.png": draw_curves(found["curves"], axes),
        }

    def _measure(self, encode: Encoder, data: Data) -> dict[str, Any]:
        batches = _drawn(data, self.images, self.seed)
        plain = [_directions(encode(images)) for images in batches]
        between = max(distance_between(torch.cat(plain)), LEAST)
        count = sum(map(len, batches))
        curves: dict[str, list[float]] = {}
        for name, change in self._changes(data).items():
            curves[name] = [
                self._moved(encode, batches, plain, change, strength) / count / between
                for strength in change.strengths
            ]
        return {"images": count, "between": between, "curves": curves}

    def _changes(self, data: Data) -> dict[str, ImageChange]:
        """The changes that every network is asked about, and the operations of the spec."""
        names = distinct([*CHANGES, *(params.name for params in self.operations)])[len(CHANGES) :]
        return CHANGES | {
            name: by_operation(registry.build("operation", params, data.size))
            for name, params in zip(names, self.operations, strict=True)
        }

    def _moved(
        self,
        encode: Encoder,
        batches: list[Tensor],
        plain: list[Tensor],
        change: ImageChange,
        strength: float,
    ) -> float:
        """Cosine distances to the changed images, summed."""
        generator = torch.Generator().manual_seed(self.seed)
        total = 0.0
        for images, directions in zip(batches, plain, strict=True):
            moved = _directions(encode(change(images, strength, generator)))
            total += ((moved - directions).square().sum() / 2).item()
        return total


def distance_between(directions: Tensor) -> float:
    """Mean of 1 - cosine over all pairs of different rows of unit length [N, D]."""
    # All pairs at once: the sum of N^2 cosines is the squared length of the sum.
    count = len(directions)
    return ((count**2 - directions.sum(0).square().sum()) / (count * (count - 1))).item()


def _directions(features: Tensor) -> Tensor:
    if not features.isfinite().all():
        raise UserError("evaluator invariance: the features are not finite; the network has diverged")
    return F.normalize(features.double(), dim=-1)


def _drawn(data: Data, count: int, seed: int) -> list[Tensor]:
    """Test images in batches of even size but the last; drawn, because a split may be ordered by class."""
    if data.test_images < 2:
        raise UserError(f"evaluator invariance: needs two test images, and there is {data.test_images}")
    if data.channels not in (1, 3):
        raise UserError(f"evaluator invariance: changes grey or RGB images, not {data.channels} channels")
    order = torch.randperm(data.test_images, generator=torch.Generator().manual_seed(seed))
    places = order[:count].sort().values
    chosen, start = [], 0
    for images, _ in data.test(BATCH):
        here = places[(places >= start) & (places < start + len(images))] - start
        chosen.append(images[here.to(images.device)])
        start += len(images)
    return list(torch.cat(chosen).split(BATCH))
