"""Measures of features that need no label."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators import _figures
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import BATCH, Encoder
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

CHUNK = 1024  # images compared with all others at once
RANK_EPSILON = 1e-7  # of RankMe, for features in float32
UNIFORMITY_T = 2.0  # of Wang and Isola


def rank_me(features: Tensor) -> float:
    """Exp of the entropy of the singular values' shares, features [N, D]; RankMe, arXiv 2210.02885, Eq. 1."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + RANK_EPSILON
    return (-(shares * shares.log()).sum()).exp().item()


def spread(features: Tensor) -> float:
    """Std of normalised features [N, D], mean over dimensions; SimSiam, arXiv 2011.10566, Sec. 4.1."""
    return F.normalize(features.double(), dim=1).std(0, correction=0).mean().item()


def uniformity(features: Tensor) -> float:
    """Log of the mean over pairs of exp(-2 |x - y|^2) of normalised features [N, D].

    Wang and Isola, arXiv 2005.10242, Sec. 4.2; a pair is two different images, and N is at least 2.
    """
    x = F.normalize(features.double(), dim=1)
    N, total = len(x), x.new_zeros(())
    for start in range(0, N, CHUNK):
        chunk = x[start : start + CHUNK]
        kernel = (-UNIFORMITY_T * _squared(chunk @ x[start:].T)).exp()  # [B, N - start]
        total += kernel.triu(1).sum()
    return math.log(total.item() / (N * (N - 1) / 2))


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean |x - y|^2 of normalised features [N, D] of two crops of each image; arXiv 2005.10242, Sec. 4.2."""
    cosines = (F.normalize(one.double(), dim=1) * F.normalize(other.double(), dim=1)).sum(1)
    return _squared(cosines).mean().item()


def eigenvalues(features: Tensor) -> Tensor:
    """Of the covariance of features [N, D], largest first: [D], on the CPU."""
    x = features.double()
    x = x - x.mean(0)
    return torch.linalg.eigvalsh(x.T @ x / len(x)).flip(0).clamp_min(0).cpu()


def _squared(cosines: Tensor) -> Tensor:
    """Distances of unit vectors, squared."""
    return (2 - 2 * cosines).clamp_min(0)


RATIOS = (3 / 4, 4 / 3)  # width over height of crops, uniform in its logarithm


@register("evaluator", "spectrum")
class Spectrum:
    """RankMe, spread, uniformity and alignment of the test split's features, and their eigenvalues.

    RankMe, arXiv 2210.02885, Eq. 1; uniformity and alignment, arXiv 2005.10242, Sec. 4.2. `std` is that of
    the normalised features, and `std_even` what it is where they fill all directions evenly, 1 / sqrt(D).
    """

    def __init__(
        self,
        *,
        least_area: Annotated[
            float, Field(gt=0, le=1, description="smallest share of an image that a crop for alignment shows")
        ] = 0.2,
        seed: Annotated[
            int, Field(ge=0, lt=2**32, description="of the places and flips of the crops for alignment")
        ] = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.least_area, self.seed = least_area, seed
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        return (
            f"spectrum/1: test split, of the {self.of} in evaluation mode; rankme with epsilon "
            f"{RANK_EPSILON:g} of features neither centred nor normalised; of normalised features: "
            f"std mean over dimensions, uniformity with t={UNIFORMITY_T:g} over all pairs, "
            f"alignment with alpha=2 of two crops of each image, {self.least_area:g} to 1 of its area, "
            f"ratio 3/4 to 4/3, flipped with 0.5, seed={self.seed}"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Higher is better for `rankme` and `std`, lower for `uniformity` and `alignment`."""
        features = encode.split(data, "test").features
        if len(features) < 2:
            raise UserError("evaluator spectrum: there is one test image; uniformity compares two or more")
        return {
            "rankme": rank_me(features),
            "std": spread(features),
            "std_even": 1 / math.sqrt(features.shape[1]),
            "uniformity": uniformity(features),
            "alignment": alignment(*self._crops(encode, data)),
        }

    def files(self, encode: Encoder, data: Data) -> dict[str, bytes]:
        """The eigenvalues of the features' covariance."""
        features = encode.split(data, "test").features
        values = eigenvalues(features)
        return {"eigenvalues.png": _figures.eigenvalue_plot(values, rank_me(features))}

    def _crops(self, encode: Encoder, data: Data) -> tuple[Tensor, Tensor]:
        """Features [N, D] of the first and of the second crop of each test image."""
        generator = torch.Generator().manual_seed(self.seed)
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for images, _ in data.test(BATCH):
            for side in sides:
                side.append(encode(random_crops(images, self.least_area, encode.size, generator)))
        return torch.cat(sides[0]), torch.cat(sides[1])


def random_crops(images: Tensor, least_area: float, size: int, generator: torch.Generator) -> Tensor:
    """A crop of each image uint8 [B, C, H, W], bicubically resized, half of them flipped: [B, C, size, size].

    Its share of the area is uniform in `least_area` to 1; sides longer than the image's are cut to them.
    """
    H, W = images.shape[2:]
    low, high = map(math.log, RATIOS)
    crops = []
    for image, draw in zip(images, torch.rand(len(images), 5, generator=generator).tolist(), strict=True):
        area = H * W * (least_area + (1 - least_area) * draw[0])
        ratio = math.exp(low + (high - low) * draw[1])
        height = min(H, max(1, round(math.sqrt(area / ratio))))
        width = min(W, max(1, round(math.sqrt(area * ratio))))
        top, left = int(draw[2] * (H - height + 1)), int(draw[3] * (W - width + 1))
        crop = image[None, :, top : top + height, left : left + width].float()
        crop = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        crops.append(crop.flip(3) if draw[4] < 0.5 else crop)
    return torch.cat(crops).round().clamp(0, 255).to(torch.uint8)
