"""Logistic regression on frozen features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dino_lab.components.evaluators._logistic import fit, probabilities
from dino_lab.components.evaluators._probing import (
    PROBED,
    ProbeSeed,
    ValidationShare,
    accuracies,
    floors_of_accuracies,
    standardisation,
    validation_part,
)
from dino_lab.errors import UserError
from dino_lab.evaluation.encoder import Encoder
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

Strength = Annotated[float, Field(gt=0, le=1e6)]


@register("evaluator", "logistic")
class Logistic:
    """Accuracy of multinomial logistic regression on features, its penalty chosen on a validation part.

    By scikit-learn's L-BFGS; `inverse_penalties` are what it calls C, the weight of the summed cross-entropy
    beside half the squared weights. After DINOv2, arXiv 2304.07193.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("train", "test")

    def __init__(
        self,
        *,
        inverse_penalties: Annotated[
            tuple[Strength, ...],
            Field(min_length=1, description="values of C to choose from; a larger one regularizes less"),
        ] = (1e-4, 1e-3, 1e-2, 0.1, 1.0),
        iterations: Annotated[int, Field(gt=0, description="of L-BFGS, at most")] = 1000,
        validation: ValidationShare = 0.1,
        seed: ProbeSeed = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.inverse_penalties, self.iterations = inverse_penalties, iterations
        self.validation, self.seed = validation, seed
        self.every, self.of = options.every, options.of

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        penalties = ",".join(f"{value:g}" for value in self.inverse_penalties)
        return (
            f"logistic/2: features, of the {self.of} in evaluation mode, unaugmented, standardised with mean "
            f"and std of the training part; L-BFGS of at most {self.iterations} iterations, C={penalties}, "
            f"chosen by top-1 on {self.validation:g} of the training split, stratified, at least one image a "
            f"class, not trained on, seed={self.seed}; test split scored once, seen classes only"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Top-1, top-5 for more than five classes, and the C chosen with its validation top-1."""
        bank, test = encode.split(data, "bank"), encode.split(data, "test")
        labels, held_out = bank.labels.cpu(), validation_part(bank.labels, self.validation, self.seed).cpu()
        features = bank.features.cpu()
        mean, std = standardisation(features[~held_out])
        x, y = ((features - mean) / std)[~held_out], labels[~held_out]
        if len(y.unique()) < 2:
            raise UserError("evaluator logistic: all training images are of one class; it takes two")
        checked = (features[held_out] - mean) / std
        models = [fit(x, y, value, self.iterations) for value in self.inverse_penalties]
        choices = [
            accuracies(probabilities(model, checked, data.classes), labels[held_out])["top1"]
            for model in models
        ]
        best = choices.index(max(choices))  # of equals the first
        scores = probabilities(models[best], (test.features.cpu() - mean) / std, data.classes)
        return {
            **accuracies(scores, test.labels.cpu()),
            "inverse_penalty": self.inverse_penalties[best],
            "validation_top1": choices[best],
        }

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, and the same classifier on pixels of small images."""
        small = pixels.at(min(PROBED, pixels.size), data.channels)
        bank, test = small.split(data, "bank"), small.split(data, "test")
        return floors_of_accuracies(bank, test, data.classes, self.forward(small, data))
