"""Islands of agreement, measured and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab_glom import _agreement, _picture

BATCH = 20  # images at once: all pairs of their columns are compared


@register("evaluator", "islands")
class Islands:
    """Do columns of a part, or of an object, agree at some level (Hinton, arXiv 2102.12627, Sec. 1)?

    For each level, 1 the lowest: `part_gap` is the mean cosine of two columns of one part less that of two
    columns of different parts; `object_gap` that of two columns of the object less that of one of it and one
    of the background. Islands are columns connected through neighbours whose cosine exceeds `threshold`:
    `part_ari` and `object_ari` are the adjusted Rand index of islands and masks, background included, and
    `islands` is how many there are in an image. A column belongs to what most of its pixels show. All are
    means over the first `images` of the test split. `map: tokens` compares a vision transformer.
    """

    def __init__(
        self,
        *,
        images: Annotated[int, Field(gt=0, description="test images, the first of the split")] = 200,
        threshold: Annotated[
            float, Field(gt=-1, lt=1, description="cosine above which neighbouring columns are connected")
        ] = 0.9,
        map: Annotated[
            Literal["levels", "tokens"],
            Field(description="what is measured: GLOM's levels, or patch tokens as the only level"),
        ] = "levels",
        pictures: Annotated[int, Field(gt=0, description="images that are drawn, the first ones")] = 6,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.images, self.threshold, self.map, self.pictures = images, threshold, map, pictures
        self.every, self.of = options.every, options.of
        self.needs = (f"backbone.{map}", "data.annotated")

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        return (
            f"islands/1: cosine of columns ({self.map}), islands above {self.threshold:g}, of the {self.of} "
            f"in evaluation mode, first {self.images} images of the test split"
        )

    def forward(self, encode: Encoder, data: Any) -> dict[str, float]:
        """Scores of each level, named `level1_part_gap` and so on."""
        per_image: dict[str, list[Tensor]] = {}
        for seen in self._seen(encode, data, self.images):
            for name, values in _scores(seen).items():
                per_image.setdefault(name, []).append(values)
        means = {name: torch.cat(values).double().nanmean(0) for name, values in per_image.items()}  # [L]
        if any(mean.isnan().any() for mean in means.values()):
            raise UserError(
                f"evaluator islands: in none of the {self.images} images two parts and the background have "
                "columns of their own; more images, or smaller patches"
            )
        levels = len(means["islands"])
        return {f"level{i + 1}_{name}": mean[i].item() for i in range(levels) for name, mean in means.items()}

    def files(self, encode: Encoder, data: Any) -> dict[str, bytes]:
        """`levels.png`: the first images, their parts, and the islands of each level."""
        seen = list(self._seen(encode, data, min(self.pictures, self.images)))
        columns = [torch.cat(column).cpu() for column in zip(*(s.drawn() for s in seen), strict=True)]
        return {"levels.png": _picture.draw(*columns)}

    def _seen(self, encode: Encoder, data: Any, count: int) -> Iterator[_Seen]:
        """The first `count` test images, some at a time, with their embeddings and islands."""
        if self.images > data.test_images:
            raise UserError(
                f"evaluator islands: images = {self.images} is more than the {data.test_images} test images"
            )
        for indices in torch.arange(count).split(BATCH):
            images, _, _, parts, _ = data.annotated("test", indices)
            levels = encode.ask(self.map, images)
            levels = levels if self.map == "levels" else levels[:, None]  # [N, L, D, h, w]
            if not levels.isfinite().all():
                raise UserError("evaluator islands: the embeddings are not finite; the network has diverged")
            grid = (levels.shape[-2], levels.shape[-1])
            cosine = _agreement.cosines(levels)
            names = _agreement.islands(cosine, grid, self.threshold)
            yield _Seen(images, parts, levels, cosine, names)


@dataclass(frozen=True)
class _Seen:
    """Some images and what the network makes of them."""

    images: Tensor  # uint8 [N, C, H, W]
    parts: Tensor  # [N, H, W], 0 background
    levels: Tensor  # [N, L, D, h, w]
    cosine: Tensor  # [N, L, P, P]
    names: Tensor  # [N, L, P], of the islands

    def drawn(self) -> tuple[Tensor, ...]:
        """What a picture shows."""
        return self.images, self.parts, self.levels, self.names


def _scores(seen: _Seen) -> dict[str, Tensor]:
    """Scores of each image and level, [N, L]; NaN where an image has not both kinds of pairs."""
    grid = (seen.levels.shape[-2], seen.levels.shape[-1])
    part = _agreement.regions(seen.parts.to(seen.names.device), grid)[:, None]  # [N, 1, P]
    thing = part > 0
    inside = thing[..., None] & thing[..., None, :]
    equal = part[..., None] == part[..., None, :]
    return {
        "part_gap": _agreement.gap(seen.cosine, inside & equal, inside & ~equal),
        "object_gap": _agreement.gap(seen.cosine, inside, thing[..., None] & ~thing[..., None, :]),
        "part_ari": _agreement.adjusted_rand(seen.names, part),
        "object_ari": _agreement.adjusted_rand(seen.names, thing),
        "islands": (seen.names == torch.arange(seen.names.shape[-1], device=seen.names.device)).sum(-1),
    }
