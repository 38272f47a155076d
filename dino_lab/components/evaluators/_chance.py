"""What scores are when the images are not looked at."""

from __future__ import annotations

import torch
from torch import Tensor

CHANCE, PIXELS = "chance", "raw pixels"  # names of floors


def accuracy_by_chance(train: Tensor, test: Tensor, classes: int, top: int = 1) -> float:
    """The better accuracy of two answers that ignore the image: any `top` classes, and always the same.

    The second names the `top` classes that are most frequent in the labels `train` [N], and is right for the
    images of `test` [M] that are of one of them.
    """
    frequent = torch.bincount(train, minlength=classes).argsort(descending=True, stable=True)[:top]
    return max(min(1.0, top / classes), torch.isin(test, frequent).double().mean().item())


def average_precision_by_chance(relevant: Tensor, images: int) -> Tensor:
    """The expected average precision, float64 [N], of a random ranking of `images`, `relevant` [N] of them.

    Of R relevant images among M, that at place n is relevant with probability R / M, and each of the n - 1
    before it then with (R - 1) / (M - 1). The mean over places of the expected precision at a relevant one is
    therefore (H + (R - 1) / (M - 1) (M - H)) / M, with the harmonic number H = 1 + 1/2 + ... + 1/M.
    """
    harmonic = (1 / torch.arange(1, images + 1, dtype=torch.float64)).sum()
    among_others = (relevant.double() - 1) / max(1, images - 1)
    return (harmonic + among_others * (images - harmonic)) / images
