"""Boxes around the attention of a network, compared with objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._masks import (
    FLOOR_NAMES,
    Pictures,
    TestImages,
    TestPixels,
    centre_box,
    images_in_words,
    pixels_in_words,
)
from dino_lab.errors import UserError
from dino_lab.evaluation.attention_maps import maps_of, mass_masks
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import MaskedImages
from dino_lab.imaging.pictures import frame, plain, png, sheet, with_bands
from dino_lab.protocols import GivesAnnotations
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab.types import VOID

Box = tuple[float, float, float, float]  # x0 y0 x1 y1, the last two exclusive
LEAST = 1e-5  # of the affinity of two tokens that are not alike: TokenCut, arXiv 2202.11539, Sec. 3


def box_of(mask: Tensor) -> Box:
    """The box of a mask bool [h, w], in cells; of an empty one the whole."""
    if not mask.any():
        return 0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def largest_component(mask: Tensor) -> Tensor:
    """The largest part of a mask bool [h, w] whose cells touch along an edge; of equal ones the first."""
    names, count = _components(mask)
    if count == 0:
        return mask
    sizes = np.bincount(names.ravel())[1:]
    return torch.from_numpy(names == sizes.argmax() + 1)


def token_cut(tokens: Tensor, threshold: float) -> Tensor:
    """The foreground bool [h, w] of tokens [D, h, w] by a normalised cut: TokenCut, arXiv 2202.11539, Sec. 3.

    Two tokens have the affinity 1 where their cosine is at least `threshold`, else `LEAST`. The second
    eigenvector of (degree - affinity) x = eigenvalue degree x is cut at its mean; the side of its largest
    absolute entry is the foreground, and of that what is connected with this entry is kept. If all affinities
    are equal, nothing is cut, and all is foreground.
    """
    from scipy.linalg import eigh

    size = tokens.shape[1:]
    unit = F.normalize(tokens.flatten(1).double(), dim=0)  # [D, h w]
    affinity = torch.where(unit.T @ unit >= threshold, 1.0, LEAST).double()
    if (affinity == affinity[0, 0]).all():
        return torch.ones(size, dtype=torch.bool)  # any vector would do
    degree = affinity.sum(1).diag()
    _, vectors = eigh((degree - affinity).numpy(), degree.numpy(), subset_by_index=[1, 1])
    vector = torch.from_numpy(vectors[:, 0])
    seed = int(vector.abs().argmax())
    above = vector > vector.mean()
    names, _ = _components((above == above[seed]).view(size))
    return torch.from_numpy(names == names.ravel()[seed])


def overlap(box: Box, others: Tensor) -> Tensor:
    """Intersection over union of a box and boxes [M, 4]: float64 [M]."""
    one, others = torch.tensor(box, dtype=torch.float64), others.double()
    low, high = torch.maximum(one[:2], others[:, :2]), torch.minimum(one[2:], others[:, 2:])
    both = (high - low).clamp_min(0).prod(1)
    areas = (one[2:] - one[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1)
    return both / (areas - both)


def scaled(box: Box, grid: tuple[int, int], size: int) -> Box:
    """A box in cells of a grid (h, w), in pixels of an image of `size`."""
    x, y = size / grid[1], size / grid[0]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def _components(mask: Tensor) -> tuple[NDArray[np.int32], int]:
    """Numbers 1, 2, ... [h, w] of the parts of a mask, 0 outside, and how many there are."""
    from scipy import ndimage

    names, count = ndimage.label(mask.numpy())
    return names, int(count)


COLOURS = {"object": "white", "attention": "orange", "similarity": "orange", "tokencut": "cyan"}


@register("evaluator", "attention_boxes")
class AttentionBoxes:
    """Object discovery without labels: share of images whose box finds an object (CorLoc), and mean overlap.

    `attention_corloc` and `attention_iou` are of the box around the largest connected part of the mask that
    holds `mass` of the attention of CLS in the last block, mean over heads (`similarity_...` where a backbone
    has no such attention); `tokencut_...` of the box of a normalised cut of the last block's tokens, where
    two go together if their cosine is at least `affinity` (TokenCut, arXiv 2202.11539, Sec. 3, with the
    block's output instead of its keys). Where all go together, nothing can be cut, and the box is the whole
    image; `centre: true` takes the mean token of the image from each first, which small networks need. A box
    finds an object if their intersection over union is at least 0.5; the overlap is that with the object that
    fits best. `centre_box_...` and `whole_image_...` are floors.
    """

    needs: ClassVar[tuple[type, ...]] = (GivesAnnotations,)

    def __init__(
        self,
        *,
        mass: Annotated[
            float, Field(gt=0, lt=1, description="share of the attention that the first box holds; DINO: 0.6")
        ] = 0.6,
        affinity: Annotated[
            float,
            Field(gt=-1, lt=1, description="cosine from which two tokens are connected, tau in TokenCut"),
        ] = 0.2,
        centre: Annotated[
            bool, Field(description="subtract the image's mean token first, as small networks need")
        ] = False,
        images: TestImages = 200,
        pixels: TestPixels = None,
        pictures: Pictures = 12,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.mass, self.affinity, self.images, self.pixels = mass, affinity, images, pixels
        self.centre, self.pictures = centre, pictures
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        return (
            f"attention_boxes/1: largest 4-connected part of {100 * self.mass:g} % of the mean attention; "
            f"normalised cut of the last block's tokens{', less their mean' * self.centre}, 1 where cosine "
            f">= {self.affinity:g}, else {LEAST:g}, at the eigenvector's mean, 4-connected part of "
            "its largest absolute entry; CorLoc at IoU 0.5 and mean IoU, with the best object of the image; "
            "floors: centre square of half the area, whole image; "
            f"{images_in_words(self.of, self.images)}, {pixels_in_words(self.pixels)}"
        )

    def forward(self, encode: Encoder, data: Any) -> dict[str, float]:
        """CorLoc and mean intersection over union of each kind of box."""
        seen = encode.at(self.pixels, data.channels).annotated(data, self.images)
        found: dict[str, list[float]] = {}
        for i, boxes in enumerate(self._boxes(seen, len(seen.images))):
            truth = _objects(seen.objects[i])
            if not len(truth):
                continue  # the square in the middle of the image holds none
            for name, box in (boxes | _floors(data.size)).items():
                found.setdefault(name, []).append(float(overlap(box, truth).max()))
        if not found:
            raise UserError(f"evaluator attention_boxes: none of {len(seen.images)} images has an object")
        scores: dict[str, float] = {}
        for name, overlaps in found.items():
            scores |= {f"{name}_{key}": value for key, value in _summary(overlaps).items()}
        return scores

    def floors(self, pixels: Encoder, data: Any) -> dict[str, dict[str, float]]:
        """The centre square and the whole image."""
        truths = [_objects(objects) for objects in pixels.annotated(data, self.images).objects]
        found = {
            floor: _summary([float(overlap(box, truth).max()) for truth in truths if len(truth)])
            for floor, box in zip(FLOOR_NAMES, _floors(data.size).values(), strict=True)
        }
        return {
            f"{kind}_{key}": {floor: values[key] for floor, values in found.items()}
            for kind in ("attention", "similarity", "tokencut")
            for key in ("corloc", "iou")
        }

    def files(self, encode: Encoder, data: Any) -> dict[str, bytes]:
        """`boxes.png`: the first images with their objects' boxes in white, and those that were found."""
        seen = encode.at(self.pixels, data.channels).annotated(data, self.images)
        tiles = []
        for i, boxes in enumerate(self._boxes(seen, min(self.pictures, len(seen.images)))):
            tile, truth = plain(seen.images[i]), _objects(seen.objects[i])
            for box in truth.tolist():
                tile = frame(tile, box, data.size, COLOURS["object"])
            for name, found in boxes.items():
                tile = frame(tile, found, data.size, COLOURS[name])
            overlaps = [overlap(found, truth).max().item() for found in boxes.values() if len(truth)]
            tiles.append(("  ".join(f"{value:.2f}" for value in overlaps), tile))
        shown = ("object", *boxes)
        legend = ", ".join(f"{name} {COLOURS[name]}" for name in shown) + "; above: intersection over union"
        legend = with_bands(legend, seen.images.shape[1])
        return {"boxes.png": png(sheet([tiles[i : i + 4] for i in range(0, len(tiles), 4)], legend))}

    def _boxes(self, seen: MaskedImages, count: int) -> list[dict[str, Box]]:
        """Boxes in pixels of the first `count` images, by what they come from."""
        maps, tokens = maps_of(seen.output), seen.output.tokens
        if tokens is not None and not tokens.isfinite().all():
            raise UserError("the tokens are not finite; the network has diverged")
        if tokens is not None and self.centre:
            tokens = tokens - tokens.mean((2, 3), keepdim=True)
        masks = mass_masks(maps.mean(), self.mass)
        found = []
        for i in range(count):
            cells: dict[str, Tensor] = {maps.kind: largest_component(masks[i])}
            if tokens is not None:
                cells["tokencut"] = token_cut(tokens[i], self.affinity)
            found.append({name: _in_pixels(mask, seen.images.shape[-1]) for name, mask in cells.items()})
        return found


def _in_pixels(mask: Tensor, size: int) -> Box:
    return scaled(box_of(mask), (mask.shape[0], mask.shape[1]), size)


def _objects(objects: Tensor) -> Tensor:
    """Boxes [objects, 4] of a map uint8 [H, W]."""
    names = objects.unique()
    names = names[(names > 0) & (names != VOID)]
    return torch.tensor([box_of(objects == name) for name in names]).view(-1, 4)


def _summary(overlaps: Sequence[float]) -> dict[str, float]:
    """CorLoc and mean intersection over union from the best one of each image."""
    return {
        "corloc": sum(value >= 0.5 for value in overlaps) / len(overlaps),
        "iou": sum(overlaps) / len(overlaps),
    }


def _floors(size: int) -> dict[str, Box]:
    x0, y0, x1, y1 = centre_box(size)
    return {
        "centre_box": (float(x0), float(y0), float(x1), float(y1)),
        "whole_image": (0.0, 0.0, float(size), float(size)),
    }
