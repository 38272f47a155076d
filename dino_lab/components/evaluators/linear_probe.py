"""Linear classification of frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._probing import (
    PROBED,
    ProbeSeed,
    ValidationShare,
    accuracies,
    floors_of_accuracies,
    inputs,
    only_seen,
    standardisation,
    validation_part,
)
from dino_lab.evaluation.encoder import BLOCKS, Encoder
from dino_lab.evaluation.outputs import Representation
from dino_lab.protocols import Data
from dino_lab.registry import EvaluatorOptions, Flat, register

MOMENTUM = 0.9
INITIAL_STD = 0.01
REFERENCE_BATCH = 256  # learning rates are for a batch of this size


def train_heads(
    features: Tensor, labels: Tensor, classes: int, rates: Sequence[float], epochs: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights [R, D, classes] and biases [R, classes] after SGD on the cross-entropy of features [N, D].

    DINO, arXiv 2104.14294, appendix F.2; many rates at once after DINOv2, arXiv 2304.07193. Momentum 0.9, no
    weight decay, a cosine to 0 over all steps, rates times batch / 256. All start from the same weights and
    see the same batches: a new order every epoch, the last batch of which may be smaller.
    """
    images, D = features.shape
    R, batch = len(rates), min(batch, images)
    generator = torch.Generator().manual_seed(seed)
    start = INITIAL_STD * torch.randn(D, 1, classes, generator=generator, dtype=features.dtype)
    # [D, R, classes], so that one product serves all rates.
    weight = start.to(features.device).repeat(1, R, 1)
    bias = weight.new_zeros(R, classes)
    weight_step, bias_step = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = weight.new_tensor(rates)[:, None] * batch / REFERENCE_BATCH  # [R, 1]
    steps, step = epochs * math.ceil(images / batch), 0
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator).to(features.device)
        for rows in order.split(batch):
            x = features[rows]
            slope = (x @ weight.flatten(1)).view(-1, R, classes).add_(bias).softmax(-1)
            slope[torch.arange(len(rows), device=x.device), :, labels[rows]] -= 1  # of the loss by the logits
            slope /= len(rows)
            now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)))
            weight_step.mul_(MOMENTUM).add_((x.T @ slope.flatten(1)).view_as(weight))
            bias_step.mul_(MOMENTUM).add_(slope.sum(0))
            weight -= now * weight_step
            bias -= now * bias_step
            step += 1
    return weight.transpose(0, 1).contiguous(), bias


# Those of DINOv2's evaluation, arXiv 2304.07193, for a batch of 256 images.
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

Rate = Annotated[float, Field(gt=0, le=100)]


@register("evaluator", "linear_probe")
class LinearProbe:
    """Accuracy of a linear classifier on frozen features, its learning rate chosen on a validation part.

    DINO, arXiv 2104.14294, Sec. 4.1 and appendix F.2, on features computed once, so without augmentation;
    many learning rates at once after DINOv2, arXiv 2304.07193.
    """

    compares_labels: tuple[Literal["train", "test"], ...] = ("train", "test")

    def __init__(
        self,
        *,
        blocks: Annotated[
            int,
            Field(ge=1, le=BLOCKS, description="last blocks whose CLS tokens are joined; DINO: 4 of ViT-S"),
        ] = 1,
        mean_tokens: Annotated[
            bool, Field(description="join the mean of the patch tokens too; DINO: with ViT-B")
        ] = False,
        rates: Annotated[
            tuple[Rate, ...],
            Field(min_length=1, description="learning rates to choose from, for 256 images a batch"),
        ] = RATES,
        epochs: Annotated[int, Field(gt=0, description="passes over the training part; DINO: 100")] = 100,
        batch_size: Annotated[
            int, Field(gt=0, description="images of one step; at most the training part. DINO: 1024")
        ] = 1024,
        validation: ValidationShare = 0.1,
        seed: ProbeSeed = 0,
        options: Flat[EvaluatorOptions] = EvaluatorOptions(),
    ) -> None:
        self.blocks, self.mean_tokens, self.rates = blocks, mean_tokens, rates
        self.epochs, self.batch_size, self.validation, self.seed = epochs, batch_size, validation, seed
        self.every, self.of = options.every, options.of

    @property
    def wants(self) -> tuple[Representation, ...]:
        """Blocks and mean tokens, where they are used."""
        blocks: tuple[Representation, ...] = ("blocks",) if self.blocks > 1 else ()
        return (*blocks, "mean_tokens") if self.mean_tokens else blocks

    @property
    def protocol(self) -> str:
        """Everything that a score depends on."""
        rates = ",".join(f"{rate:g}" for rate in self.rates)
        seen = f"CLS of the last {self.blocks} blocks" if self.blocks > 1 else "features"
        tokens = " and mean token" if self.mean_tokens else ""
        return (
            f"linear_probe/2: {seen}{tokens}, of the {self.of} in evaluation mode, unaugmented, "
            "standardised with mean and std of the training part; SGD momentum 0.9, no weight decay, "
            f"{self.epochs} epochs of batches of {self.batch_size} (at most the part), rates {rates} times "
            f"batch/256, cosine to 0 by step, weights N(0, 0.01), biases 0, seed={self.seed}; rate chosen by "
            f"top-1 on {self.validation:g} of the training split, stratified, at least one image a class, "
            "not trained on; test split scored once, seen classes only"
        )

    def forward(self, encode: Encoder, data: Data) -> dict[str, float]:
        """Top-1, top-5 for more than five classes, and the rate chosen with its validation top-1."""
        bank, test = encode.split(data, "bank"), encode.split(data, "test")
        features = inputs(bank, self.blocks, self.mean_tokens)
        held_out = validation_part(bank.labels, self.validation, self.seed)
        mean, std = standardisation(features[~held_out])
        features = (features - mean) / std
        seen = bank.labels[~held_out]
        weights, biases = train_heads(
            features[~held_out],
            seen,
            data.classes,
            self.rates,
            self.epochs,
            self.batch_size,
            self.seed,
        )
        choices = [
            _accuracies(weight, bias, features[held_out], bank.labels[held_out], seen)["top1"]
            for weight, bias in zip(weights, biases, strict=True)
        ]
        best = choices.index(max(choices))  # of equals the first
        x = (inputs(test, self.blocks, self.mean_tokens) - mean) / std
        scores = _accuracies(weights[best], biases[best], x, test.labels, seen)
        return {**scores, "rate": self.rates[best], "validation_top1": choices[best]}

    def floors(self, pixels: Encoder, data: Data) -> dict[str, dict[str, float]]:
        """Chance, and the same classifier on pixels of small images, which have neither blocks nor tokens."""
        small = pixels.at(min(PROBED, pixels.size), data.channels)
        found = {} if self.wants else self.forward(small, data)
        bank, test = small.split(data, "bank"), small.split(data, "test")
        return floors_of_accuracies(bank, test, data.classes, found)


def _accuracies(weight: Tensor, bias: Tensor, x: Tensor, labels: Tensor, seen: Tensor) -> dict[str, float]:
    """Of one classifier on inputs x [N, D], among the classes that training saw."""
    return accuracies(only_seen(torch.addmm(bias, x, weight), seen), labels)
