"""Weighted nearest neighbours on frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._chance import CHANCE, PIXELS, accuracy_by_chance
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.kernels.linear import linear
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

BLOCK = 2**16  # images of the bank compared with at once
BLOCK_BYTES = 2**27  # of cosines that are there at once
CANDIDATES = 32  # more than k, that a search in bfloat16 leaves to be compared again
GATHERED = 256  # images whose candidates are compared again at once

Search = Callable[[Tensor], tuple[Tensor, Tensor]]


def nearest(
    queries: Tensor, bank: Tensor, k: int, precision: torch.dtype = torch.float32
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of `queries` [N, D], and the k largest cosines [B, k] and where in `bank` they are, best first.

    In bfloat16, products are searched for k + 32 candidates, whose cosines are then taken in float32. The
    bank's mean is subtracted for the search, which changes no order but spreads the products: bfloat16 has 8
    bits, and features of one network often point the same way.
    """
    reference = F.normalize(bank, dim=-1)
    search = _exact(reference, k) if precision == torch.float32 else _coarse(reference, k, precision)
    rows = max(1, BLOCK_BYTES // (precision.itemsize * min(BLOCK, len(bank))))
    for start in range(0, len(queries), rows):
        at = slice(start, start + rows)
        yield at, *search(F.normalize(queries[at], dim=-1))


def _exact(reference: Tensor, k: int) -> Search:
    return lambda query: _largest(query, reference, k)


def _coarse(reference: Tensor, k: int, precision: torch.dtype) -> Search:
    centred = (reference - reference.mean(0)).to(precision)
    count = min(k + CANDIDATES, len(reference))

    def search(query: Tensor) -> tuple[Tensor, Tensor]:
        _, index = _largest(query.to(precision), centred, count)
        parts = [
            (reference[where] @ rows[:, :, None])[:, :, 0]  # [b, count]
            for rows, where in zip(query.split(GATHERED), index.split(GATHERED), strict=True)
        ]
        cosine, order = torch.cat(parts).topk(k)
        return cosine, index.gather(1, order)

    return search


def _largest(query: Tensor, reference: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest products [B, k] of query [B, D] with reference [N, D], and their rows; k is at most N."""
    found = query.new_empty(len(query), 0)
    index = torch.empty(len(query), 0, dtype=torch.int64, device=query.device)
    for start in range(0, len(reference), BLOCK):
        product = linear(query, reference[start : start + BLOCK])
        value, where = product.topk(min(k, product.shape[1]))
        found, index = torch.cat([found, value], 1), torch.cat([index, where + start], 1)
        found, order = found.topk(min(k, found.shape[1]))
        index = index.gather(1, order)
    return found, index


@register("evaluator", "knn")
class Knn:
    """Weighted k-NN accuracy: neighbours by cosine in the training split vote with exp(cosine / temperature).

    DINO, arXiv 2104.14294, Sec. 4.1 and appendix F.1, after Wu et al., arXiv 1805.01978, Sec. 3.4. A class
    that no neighbour votes for is no answer, so the top 5 may be fewer. With `precision: bfloat16` candidates
    are searched in bfloat16, and those found are compared in float32.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("train", "test")

    def __init__(
        self,
        *,
        k: Annotated[
            tuple[Annotated[int, Field(gt=0)], ...],
            Field(min_length=1, description="numbers of neighbours, one score each; DINO: 10 and 20"),
        ] = (10, 20),
        temperature: Annotated[
            float, Field(gt=0, description="tau of the votes exp(cosine / tau); DINO: 0.07")
        ] = 0.07,
        precision: Annotated[
            Literal["float32", "bfloat16"],
            Field(description="of the search for candidates; they are compared in float32"),
        ] = "float32",
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        if len(set(k)) < len(k):
            raise ValueError(f"k names a number twice: {', '.join(map(str, k))}")
        self.k, self.temperature, self.precision = k, temperature, precision
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        k = ",".join(map(str, self.k))
        search = "" if self.precision == "float32" else f" (candidates searched in {self.precision})"
        return (
            f"knn/2: k={k} T={self.temperature:g}, cosine{search}, votes exp(cosine/T), of the {self.of} in "
            "evaluation mode, training split as bank, test split scored, voted classes only"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Top-1 accuracy for each k, and top-5 where there are more than five classes."""
        bank, test = encode.split(data, "bank"), encode.split(data, "test")
        if max(self.k) > len(bank.labels):
            raise UserError(
                f"evaluator knn: k = {max(self.k)} is more than the {len(bank.labels)} training images"
            )
        hits = {name: 0 for name in self._names(data.classes)}
        found = nearest(test.features, bank.features, max(self.k), getattr(torch, self.precision))
        for rows, cosine, index in found:
            truth, label = test.labels[rows], bank.labels[index]  # [B], [B, k]
            # Relative to the nearest, which changes no ranking: exp(1 / temperature) may overflow.
            # In float64, in which votes far below the largest are still told apart.
            weight = ((cosine - cosine[:, :1]).double() / self.temperature).exp()
            for k in self.k:
                correct = _ranking(weight[:, :k], label[:, :k], data.classes) == truth[:, None]
                for name, top in self._names(data.classes).items():
                    if name.startswith(f"{k}nn"):
                        hits[name] += int(correct[:, :top].sum())
        return {name: hit / len(test.labels) for name, hit in hits.items()}

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, and the same vote by neighbours in pixels."""
        bank, test = pixels.split(data, "bank"), pixels.split(data, "test")
        found = self.forward(pixels, data)
        return {
            name: {
                CHANCE: accuracy_by_chance(bank.labels, test.labels, data.classes, top),
                PIXELS: found[name],
            }
            for name, top in self._names(data.classes).items()
        }

    def _names(self, classes: int) -> dict[str, int]:
        names = {f"{k}nn": 1 for k in self.k}
        return names | ({f"{k}nn_top5": 5 for k in self.k} if classes > 5 else {})


def _ranking(weight: Tensor, label: Tensor, classes: int) -> Tensor:
    """Classes [B, min(k, classes)] by votes, most first, from weights and labels [B, k] of the neighbours.

    After the last class with a vote come -1.
    """
    votes = weight.new_zeros(len(weight), classes).scatter_add_(1, label, weight)
    voted = torch.zeros_like(votes, dtype=torch.bool).scatter_(1, label, True)
    votes.masked_fill_(~voted, -1)
    ranking = votes.argsort(dim=1, descending=True, stable=True)[:, : label.shape[1]]
    return ranking.masked_fill(~voted.gather(1, ranking), -1)
