"""Segmentation from frozen tokens."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._masks import TestPixels, images_in_words, pixels_in_words
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.outputs import MaskedImages
from dino_lab.protocols import GivesAnnotations
from dino_lab.registry import EvaluatorOptions, Flat, register
from dino_lab.types import VOID


def cell_classes(truth: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The most frequent class of the pixels of each cell: uint8 [N, H, W] to int64 [N, h, w].

    Void pixels do not count; a cell of void pixels alone is VOID. Among equals the lowest wins.
    """
    # An image at a time: a number for each pixel and class is more than large images leave room for.
    return torch.cat([_cells_of(image[None], grid, classes) for image in truth])


def _cells_of(truth: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    known = F.one_hot(torch.where(truth == VOID, classes, truth.long()), classes + 1)[..., :classes]
    shares = F.interpolate(known.movedim(-1, 1).double(), grid, mode="area")  # [N, classes, h, w]
    return torch.where(shares.sum(1) > 0, shares.argmax(1), VOID)


def pixel_classes(scores: Tensor, size: int) -> Tensor:
    """Classes int64 [N, H, W] of pixels from scores of cells [N, classes, h, w], bilinear between them."""
    return F.interpolate(scores, (size, size), mode="bilinear", align_corners=False).argmax(1)


def confusion(truth: Tensor, found: Tensor, classes: int) -> Tensor:
    """How many pixels of class i were said to be of class j, int64 [classes, classes], void left out."""
    known = truth != VOID
    pairs = truth[known].long() * classes + found[known]
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Intersection over union of each class over all pixels, mean over the classes that the truth has."""
    hits, there = counts.diag().double(), counts.sum(1)
    return (hits / (there + counts.sum(0) - hits))[there > 0].mean().item()


def accuracy(counts: Tensor) -> float:
    """The share of pixels whose class is right."""
    return (counts.trace() / counts.sum()).item()


ITERATIONS = 500  # of L-BFGS at most
CHUNK = 1024  # tokens looked up at once


@register("evaluator", "dense")
class Dense:
    """Segmentation by frozen tokens: mean IoU and pixel accuracy of two classifiers of single tokens.

    The first `train_share` of the annotated test images is learned from, the rest is scored. A token's class
    is the most frequent one of its pixels. `linear` is logistic regression (L2, `c`) on standardised tokens;
    `knn` lets the `k` nearest tokens by cosine vote with exp(cosine / temperature), as the evaluator `knn`
    does with images. Their probabilities are interpolated bilinearly, and each pixel has the likeliest class.
    `of_what: classes` tells apart background and the classes of objects, `parts` background and the numbers
    of parts. `majority_...` says the most frequent class everywhere, as a floor.
    """

    needs: ClassVar[tuple[type, ...]] = (GivesAnnotations,)

    def __init__(
        self,
        *,
        of_what: Annotated[
            Literal["classes", "parts"], Field(description="what a pixel is sorted into, beside background")
        ] = "classes",
        images: Annotated[
            int | None, Field(ge=2, description="test images, the first of the split; null: all")
        ] = 400,
        train_share: Annotated[
            float, Field(gt=0, lt=1, description="share of the images that the classifiers learn from")
        ] = 0.5,
        c: Annotated[
            float, Field(gt=0, description="inverse strength of the L2 penalty of `linear`, scikit-learn's C")
        ] = 1.0,
        k: Annotated[int, Field(gt=0, description="neighbours that vote in `knn`")] = 10,
        temperature: Annotated[
            float, Field(gt=0, description="tau of the votes exp(cosine / tau) of `knn`; DINO: 0.07")
        ] = 0.07,
        pixels: TestPixels = None,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.of_what, self.images, self.train_share = of_what, images, train_share
        self.c, self.k, self.temperature, self.pixels = c, k, temperature, pixels
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        return (
            f"dense/1: {self.of_what} and background, tokens of the last block, majority class of a cell; "
            f"linear: logistic regression, L2 C={self.c:g}, standardised, L-BFGS, at most {ITERATIONS} "
            f"iterations; knn: k={self.k} T={self.temperature:g}, cosine; bilinear between cells; mIoU over "
            f"classes that the truth has, void left out; {images_in_words(self.of, self.images)}, the first "
            f"{self.train_share:g} of them learned from, {pixels_in_words(self.pixels)}"
        )

    def forward(self, encode: Encoder, data: Any) -> dict[str, float]:
        """Mean IoU and accuracy of each classifier."""
        seen = encode.at(self.pixels, data.channels).annotated(data, self.images)
        tokens, truth = _tokens(seen), seen.classes if self.of_what == "classes" else seen.parts
        learned = round(len(truth) * self.train_share)
        if not 0 < learned < len(truth):
            raise UserError(
                f"evaluator dense: {self.train_share:g} of {len(truth)} images leaves one part empty"
            )
        classes = int(truth[truth != VOID].max()) + 1
        grid = (tokens.shape[2], tokens.shape[3])
        cells = cell_classes(truth[:learned], grid, classes).flatten()
        bank = tokens[:learned].movedim(1, -1).flatten(0, 2)[cells != VOID]  # [M, D]
        cells = cells[cells != VOID]
        if len(cells.unique()) < 2:
            raise UserError(f"evaluator dense: the {learned} images to learn from have one class only")
        asked = tokens[learned:].movedim(1, -1).flatten(0, 2)  # [n h w, D]
        said = {
            "linear": _linear(bank, cells, asked, classes, self.c),
            "knn": self._neighbours(bank, cells, asked, classes),
            "majority": F.one_hot(cells.mode().values, classes).float().expand(len(asked), -1),
        }
        scores = {}
        for name, shares in said.items():  # [n h w, classes]
            cellwise = shares.unflatten(0, (-1, *grid)).movedim(-1, 1)
            found = pixel_classes(cellwise, truth.shape[-1])
            counts = confusion(truth[learned:], found, classes)
            scores[f"{name}_miou"] = mean_iou(counts)
            scores[f"{name}_accuracy"] = accuracy(counts)
        return scores

    def _neighbours(self, bank: Tensor, cells: Tensor, asked: Tensor, classes: int) -> Tensor:
        """Shares of the votes [n, classes]."""
        if self.k > len(bank):
            raise UserError(
                f"evaluator dense: k = {self.k} is more than the {len(bank)} tokens to learn from"
            )
        reference = F.normalize(bank, dim=1)
        shares = []
        for tokens in asked.split(CHUNK):
            cosine, nearest = (F.normalize(tokens, dim=1) @ reference.T).topk(self.k)
            votes = (cosine / self.temperature).softmax(1)
            shares.append(votes.new_zeros(len(tokens), classes).scatter_add_(1, cells[nearest], votes))
        return torch.cat(shares)


def _tokens(seen: MaskedImages) -> Tensor:
    """Tokens [N, D, h, w]."""
    tokens = seen.output.tokens
    if tokens is None:
        raise UserError("evaluator dense: the backbone gives no tokens")
    if not tokens.isfinite().all():
        raise UserError("evaluator dense: the tokens are not finite; the network has diverged")
    return tokens


def _linear(bank: Tensor, cells: Tensor, asked: Tensor, classes: int, c: float) -> Tensor:
    """Probabilities [n, classes] of logistic regression; of a class that is not learned 0."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    model = LogisticRegression(C=c, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocol says how many iterations
        model.fit(((bank - mean) / std).double().numpy(), cells.numpy())
    found = torch.from_numpy(model.predict_proba(((asked - mean) / std).double().numpy())).float()
    return torch.zeros(len(asked), classes).index_copy_(1, torch.from_numpy(model.classes_), found)
