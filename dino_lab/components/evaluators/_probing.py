"""Inputs, parts and standardisation of classifiers that are trained on the labels of the training split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dino_lab.components.evaluators._chance import CHANCE, PIXELS, accuracy_by_chance
from dino_lab.errors import UserError
from dino_lab.evaluation.outputs import Split

PROBED = 16  # pixels of a side of raw images that are classified; of larger ones a classifier takes long
CONSTANT = 1e-6  # a feature whose std is below this share of its mean is constant but for rounding
TOP = 5

ValidationShare = Annotated[
    float, Field(gt=0, lt=1, description="share of the training images that the choice is made by")
]
ProbeSeed = Annotated[
    int, Field(ge=0, lt=2**32, description="of the validation part, and of what else the training draws")
]


def inputs(split: Split, blocks: int, mean_tokens: bool) -> Tensor:
    """CLS of the last `blocks` blocks, last first, then the mean of the tokens: [N, (blocks + 1) D] at most.

    DINO, arXiv 2104.14294, appendix F.2. A UserError where the backbone has fewer blocks.
    """
    parts = [split.features]
    if blocks > 1:
        there = split["blocks"].shape[1]
        if there < blocks:
            raise UserError(
                f"evaluator linear_probe: blocks = {blocks} is more than the {there} that the backbone gives"
            )
        parts = [split["blocks"][:, :blocks].flatten(1)]
    if mean_tokens:
        parts.append(split["mean_tokens"])
    return torch.cat(parts, 1)


def validation_part(labels: Tensor, share: float, seed: int) -> Tensor:
    """Which images are for validation, bool [N]: the share of every class, at least one, and never all.

    A class of one image stays in training; a UserError where no class has two.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    on_cpu = labels.cpu()
    for label in on_cpu.unique().tolist():
        members = (on_cpu == label).nonzero()[:, 0]
        count = min(len(members) - 1, max(1, round(share * len(members))))
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    if not chosen.any():
        raise UserError("no class has two training images, so that none is left to choose by")
    return chosen.to(labels.device)


def labelled_part(labels: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which images [N] keep their labels, bool on the CPU: the share of every class, at least one image.

    After SimCLR, arXiv 2002.05709, Sec. 6 and appendix B.5, whose 1 and 10 % of labels are drawn in a
    class-balanced way.
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    on_cpu = labels.cpu()
    for label in on_cpu.unique().tolist():
        members = (on_cpu == label).nonzero()[:, 0]
        count = max(1, round(share * len(members)))
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and std [D] of features [N, D]; the std of a constant feature is 1."""
    exact = features.double()
    mean, std = exact.mean(0), exact.std(0, correction=0)
    std = torch.where(std <= CONSTANT * mean.abs(), 1.0, std)
    return mean.to(features.dtype), std.to(features.dtype)


def only_seen(scores: Tensor, labels: Tensor) -> Tensor:
    """The scores [N, classes] with -inf for each class that none of the training `labels` names."""
    seen = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
    seen[labels] = True
    return scores.masked_fill(~seen, -torch.inf)


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy of scores [N, classes], and top-5 where there are more than five classes.

    A class with a score of -inf is no answer, so the top 5 may be fewer.
    """
    ranking = scores.argsort(dim=1, descending=True, stable=True)[:, :TOP]
    correct = (ranking == labels[:, None]) & (scores.gather(1, ranking) > -torch.inf)
    found = {"top1": correct[:, 0].double().mean().item()}
    if scores.shape[1] > TOP:
        found["top5"] = correct.any(1).double().mean().item()
    return found


def floors_of_accuracies(
    bank: Split, test: Split, classes: int, by_pixels: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """The floors of `accuracies`: chance, and where it was measured the same by raw pixels."""
    floors = {}
    for name, top in (("top1", 1), ("top5", TOP))[: 2 if classes > TOP else 1]:
        floors[name] = {CHANCE: accuracy_by_chance(bank.labels, test.labels, classes, top)}
        if name in by_pixels:
            floors[name][PIXELS] = by_pixels[name]
    return floors
