"""Retrieval by the rules of the revisited Oxford and Paris benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dino_lab.components.evaluators._benchmark import DIFFICULTIES, BenchmarkLayout, score
from dino_lab.components.evaluators._picture import Found, draw, spread
from dino_lab.components.evaluators._search import rankings
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.imaging.decode import pixels as pixels_of
from dino_lab.imaging.decode import read_rgb
from dino_lab.protocols import ChecksSize, ability

QUERIES = RESULTS = 8  # of a picture
LARGEST_PATCH = 64


def protocol(pixels: int | None, scales: Sequence[float], crop_queries: bool) -> str:
    """The rules of the benchmark, in the words of a protocol."""
    side = "the teacher's crop" if pixels is None else f"{pixels} px"
    return (
        f"longest side at most {side}, cut at the right and below to whole patches, scales "
        f"{','.join(f'{scale:g}' for scale in scales)} (features averaged), queries "
        f"{'cropped to their boxes' if crop_queries else 'whole'}, junk passed over, AP by trapezoids, "
        "P@k up to the last relevant image"
    )


def rank(
    encode: Encoder, layout: BenchmarkLayout, pixels: int, scales: Sequence[float], crop_queries: bool
) -> Tensor:
    """Rankings int64 [N, M] of the images for the queries, on the CPU."""
    step = _patch(encode)
    queries = (_query(layout, row, crop_queries) for row in range(len(layout.queries)))
    images = (read_rgb(file) for file in layout.images)
    features = [
        torch.stack([_feature(encode, image, pixels, scales, step) for image in some])
        for some in (queries, images)
    ]
    if not all(part.isfinite().all() for part in features):
        raise UserError("evaluator retrieval: the features are not finite; the network has diverged")
    return torch.cat([order for _, order in rankings(*features)]).cpu()


def scores(layout: BenchmarkLayout, ranked: Tensor, k: tuple[int, ...]) -> dict[str, float]:
    """`mAP` and `mP_at_k` of each difficulty, over the queries for which there is something to find."""
    found: dict[str, float] = {}
    for difficulty in DIFFICULTIES:
        rows = [score(order, *layout.masks(i, difficulty), k) for i, order in enumerate(ranked)]
        values = torch.tensor([[average, *precisions] for average, precisions in rows], dtype=torch.float64)
        names = ["mAP", *(f"mP_at_{at}" for at in k)]
        if values.isfinite().any():  # a difficulty that no query has says nothing
            means = values.nanmean(0).tolist()
            found |= {f"{difficulty}.{name}": mean for name, mean in zip(names, means, strict=True)}
    if not found:
        raise UserError("evaluator retrieval: no query of the benchmark has an image to find")
    return found


def picture(layout: BenchmarkLayout, ranked: Tensor, crop_queries: bool) -> bytes:
    """Some queries and their first results; junk is marked by a dash."""
    rows = []
    for query in spread(QUERIES, len(layout.queries)):
        right, junk = layout.masks(query, "medium")
        first = ranked[query, :RESULTS].tolist()
        marks = [None if junk[row] else bool(right[row]) for row in first]
        names = [layout.images[row].stem for row in first]
        images = [read_rgb(layout.images[row]) for row in first]
        shown = _query(layout, query, crop_queries)
        given = [(shown, layout.queries[query].stem)]
        rows.append(Found(given, list(zip(images, marks, strict=True)), names))
    return draw(rows, "queries, and what comes first (marked as medium)")


def _query(layout: BenchmarkLayout, row: int, crop: bool) -> Image.Image:
    image = read_rgb(layout.queries[row])
    if not crop:
        return image
    box = layout.truth[row].bbx
    left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    right, bottom = min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3]))
    if left >= right or top >= bottom:
        raise UserError(f"{layout.queries[row]}: its box {box} holds no pixel of the image")
    return image.crop((left, top, right, bottom))


def _feature(encode: Encoder, image: Image.Image, pixels: int, scales: Sequence[float], step: int) -> Tensor:
    """Mean feature [D] over the scales."""
    image.thumbnail((pixels, pixels), Image.Resampling.BICUBIC)
    seen = (_cut(image, scale, step) for scale in scales)
    features = [encode.unresized()(torch.from_numpy(pixels_of(one))[None])[0] for one in seen]
    return torch.stack(features).mean(0)


def _cut(image: Image.Image, scale: float, step: int) -> Image.Image:
    """Scaled, and cut to sides that are multiples of `step`."""
    width, height = (max(step, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((0, 0, width // step * step, height // step * step))


def _patch(encode: Encoder) -> int:
    """The side of a patch: the smallest size that the backbone does not refuse; 1 where it refuses none."""
    backbone = ability(encode.network.backbone, ChecksSize)
    if backbone is None:
        return 1

    def fits(size: int) -> bool:
        try:
            backbone.check_size(size)
        except ValueError:
            return False
        return True

    return next((size for size in range(1, LARGEST_PATCH + 1) if fits(size)), 1)
