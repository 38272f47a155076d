"""Masks of the attention of a network, compared with objects."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._masks import (
    FLOOR_NAMES,
    Pictures,
    TestImages,
    TestPixels,
    box_mask,
    centre_box,
    images_in_words,
    jaccard,
    pixels_in_words,
)
from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import enlarged, maps_of, mass_masks
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.pictures import HeatScale, cut_out, overlay, plain, png, sheet, with_bands
from dino_lab.protocols import GivesAnnotations
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab.types import VOID

FLOORS = ("centre_box", "whole_image")  # names of scores
Mass = Annotated[float, Field(gt=0, lt=1)]


@register("evaluator", "attention_masks")
class AttentionMasks:
    """Jaccard of objects and of masks that hold a share of the attention of CLS in the last block.

    DINO, arXiv 2104.14294, Sec. 4.2.2 and appendix D. For each of `masses`, named in per cent: `jaccard_60`
    takes for each object the head that fits it best, as the paper does; it looks at the answer, so that more
    heads score higher by chance. `mean_jaccard_60` is the mean over heads, `head1_jaccard_60` each one's own.
    All are means over the objects of an image, then over images. `centre_box` is the Jaccard of the square in
    the middle with half of the area, `whole_image` that of everything. Where a backbone has no CLS attention,
    the similarity of its tokens to their mean is taken, and names begin with `similarity_`.
    """

    needs: ClassVar[tuple[type, ...]] = (GivesAnnotations,)

    def __init__(
        self,
        *,
        masses: Annotated[
            tuple[Mass, ...],
            Field(min_length=1, description="shares of the attention that a mask holds; DINO: 0.6"),
        ] = (0.6, 0.8),
        images: TestImages = 200,
        pixels: TestPixels = None,
        pictures: Pictures = 6,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        if len({_percent(mass) for mass in masses}) < len(masses):
            raise ValueError(f"masses names a per cent twice: {', '.join(map(str, masses))}")
        self.masses, self.images, self.pixels, self.pictures = masses, images, pixels, pictures
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        masses = ",".join(map(_percent, self.masses))
        return (
            f"attention_masks/1: CLS to patches, last block, masses {masses} %, nearest; jaccard: best head "
            "of each object (optimistic, and more so with more heads), mean over objects, then images; void "
            "left out; no CLS: cosine to the mean token less the least, similarity; floors: centre square of "
            f"half the area, whole image; {images_in_words(self.of, self.images)}, "
            f"{pixels_in_words(self.pixels)}"
        )

    def forward(self, encode: Encoder, data: Any) -> dict[str, float]:
        """Jaccard by mass and head, and the floors."""
        rows = self.of_each(encode, data).values()
        if not rows:
            images = data.test_images if self.images is None else self.images
            raise UserError(f"evaluator attention_masks: none of {images} images has an object")
        return {name: torch.stack([row[name] for row in rows]).mean().item() for name in next(iter(rows))}

    def of_each(self, encode: Encoder, data: Any) -> dict[int, dict[str, Tensor]]:
        """The same of each test image that has an object, by its index."""
        seen = encode.at(self.pixels, data.channels).annotated(data, self.images)
        maps = maps_of(seen.output)
        return {
            i: self._scores(maps.kind, values, objects)
            for i, (values, objects) in enumerate(zip(maps.values, seen.objects, strict=True))
            if ((objects > 0) & (objects != VOID)).any()
        }

    def _scores(self, kind: str, values: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """Scores of one image from maps [heads, h, w] and objects [H, W]."""
        size = len(objects)
        scores: dict[str, Tensor] = {}
        for mass in self.masses:
            masks = enlarged(mass_masks(values, mass)[None], (size, size))[0]
            scores |= _named(kind, jaccard(masks, objects), _percent(mass))
        return scores | dict(zip(FLOORS, _floors(objects), strict=True))

    def floors(self, pixels: Encoder, data: Any) -> dict[str, dict[str, float]]:
        """The centre square and the whole image, of every score but those of single heads."""
        objects = pixels.annotated(data, self.images).objects
        there = [one for one in objects if ((one > 0) & (one != VOID)).any()]
        found = dict(
            zip(FLOOR_NAMES, torch.stack([_floors(one) for one in there]).mean(0).tolist(), strict=True)
        )
        kinds = ("jaccard", "mean_jaccard", "similarity_jaccard")
        return {f"{kind}_{_percent(mass)}": found for kind in kinds for mass in self.masses}

    def files(self, encode: Encoder, data: Any) -> dict[str, bytes]:
        """`heads.png`: the first images, each head's map, and what holds the first of the masses."""
        seen = encode.at(self.pixels, data.channels).annotated(data, self.images)
        maps = maps_of(seen.output)
        masks = mass_masks(maps.values, self.masses[0])
        shown = min(self.pictures, len(seen.images))
        scale = HeatScale.of(maps.values[:shown], maps.kind)
        rows = []
        for i in range(shown):
            image, names = seen.images[i], maps.names()
            tiles = [
                (with_bands("image", len(image)), plain(image)),
                ("object", cut_out(image, seen.masks[i])),
            ]
            for name, values, mask in zip(names, maps.values[i], masks[i], strict=True):
                tiles.append((name, overlay(image, values, scale)))
                tiles.append((f"{_percent(self.masses[0])} % of it", cut_out(image, mask)))
            rows.append(tiles)
        return {"heads.png": png(sheet(rows, scale=scale))}


def _floors(objects: Tensor) -> Tensor:
    """Jaccard [2] of the centre square and of the whole image with objects [H, W], mean over objects."""
    size = len(objects)
    masks = torch.stack([box_mask(centre_box(size), size), torch.ones(size, size, dtype=torch.bool)])
    return jaccard(masks, objects).mean(0)


def _named(kind: str, values: Tensor, percent: str) -> dict[str, Tensor]:
    """Scores of one image from the Jaccard [objects, heads]."""
    if kind == "similarity":
        return {f"similarity_jaccard_{percent}": values.mean()}
    heads = {f"head{k + 1}_jaccard_{percent}": value for k, value in enumerate(values.mean(0))}
    best, mean = values.amax(1).mean(), values.mean()
    return {f"jaccard_{percent}": best, f"mean_jaccard_{percent}": mean, **heads}


def _percent(mass: float) -> str:
    return f"{100 * mass:g}"
