"""Logistic regression on frozen features with the labels of few images."""

from __future__ import annotations

import statistics
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._logistic import fit, probabilities
from dino_lab.components.evaluators._probing import (
    PROBED,
    accuracies,
    floors_of_accuracies,
    labelled_part,
    standardisation,
)
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

Share = Annotated[float, Field(gt=0, le=1)]


@register("evaluator", "low_shot")
class LowShot:
    """Accuracy of logistic regression on features with the labels of a share of every class.

    DINO, arXiv 2104.14294, appendix A and Tab. 12: 1 and 10 % of the labels, no augmentation. The paper names
    a library and no penalty; that the weight of the penalty is 0.1 / images, which is C = 10, and that there
    is no intercept, was said by the library's author in issue 121 of facebookresearch/dino, for the features
    of 1 %. Here features are standardised, so that one C means the same for features of any scale, and images
    are drawn several times in place of one published list.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("train", "test")

    def __init__(
        self,
        *,
        shares: Annotated[
            tuple[Share, ...],
            Field(min_length=1, description="of the labels of every class, at least one image; scores each"),
        ] = (0.01, 0.1),
        draws: Annotated[int, Field(gt=0, description="of labelled images; a score is their mean")] = 3,
        inverse_penalty: Annotated[
            float, Field(gt=0, le=1e6, description="C; a larger one regularizes less")
        ] = 10.0,
        iterations: Annotated[int, Field(gt=0, description="of L-BFGS, at most")] = 1000,
        seed: Annotated[int, Field(ge=0, lt=2**32, description="of the draws of labelled images")] = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.shares = {f"{100 * share:g}pct".replace(".", "_"): share for share in shares}
        if len(self.shares) < len(shares):
            raise ValueError(f"shares names one twice: {', '.join(f'{share:g}' for share in shares)}")
        self.draws, self.inverse_penalty, self.iterations = draws, inverse_penalty, iterations
        self.seed = seed
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        shares = ",".join(f"{share:g}" for share in self.shares.values())
        return (
            f"low_shot/1: features, of the {self.of} in evaluation mode, unaugmented, standardised with mean "
            f"and std of the whole training split; labels of {shares} of every class, rounded, at least one "
            f"image, mean of {self.draws} draws, seed={self.seed}; L-BFGS of at most {self.iterations} "
            f"iterations, C={self.inverse_penalty:g} (beside the summed cross-entropy), no intercept; test "
            "split, seen classes only"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Means over draws of top-1, and top-5 for more than five classes, and the std of top-1, by share.

        The std is that of a sample; one draw has none.
        """
        bank, test = encode.split(data, "bank"), encode.split(data, "test")
        mean, std = standardisation(bank.features)
        x, labels = ((bank.features - mean) / std).cpu(), bank.labels.cpu()
        asked, truth = ((test.features - mean) / std).cpu(), test.labels.cpu()
        if len(labels.unique()) < 2:
            raise UserError("evaluator low_shot: all training images are of one class; it takes two")
        found = {}
        for name, share in self.shares.items():
            generator = torch.Generator().manual_seed(self.seed)
            parts = [labelled_part(labels, share, generator) for _ in range(self.draws)]
            each = [self._accuracies(x[part], labels[part], asked, truth, data.classes) for part in parts]
            for score in each[0]:
                found[f"{name}_{score}"] = statistics.fmean(one[score] for one in each)
            if self.draws > 1:
                found[f"{name}_std"] = statistics.stdev(one["top1"] for one in each)
        return found

    def _accuracies(
        self, x: Tensor, labels: Tensor, asked: Tensor, truth: Tensor, classes: int
    ) -> dict[str, float]:
        model = fit(x, labels, self.inverse_penalty, self.iterations, intercept=False)
        return accuracies(probabilities(model, asked, classes), truth)

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, and the same classifiers on pixels of small images."""
        small = pixels.at(min(PROBED, pixels.size), data.channels)
        bank, test = small.split(data, "bank"), small.split(data, "test")
        scores = self.forward(small, data)
        floors = {}
        for name in self.shares:
            its = {
                key.removeprefix(f"{name}_"): value
                for key, value in scores.items()
                if key.startswith(f"{name}_")
            }
            for score, found in floors_of_accuracies(bank, test, data.classes, its).items():
                floors[f"{name}_{score}"] = found
        return floors
