"""Multinomial logistic regression, by scikit-learn's L-BFGS."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def fit(x: Tensor, y: Tensor, inverse_penalty: float, iterations: int, *, intercept: bool = True) -> Any:
    """The model of features x [N, D] and labels y [N], both on the CPU, after at most so many iterations.

    `inverse_penalty` is scikit-learn's C, the weight of the summed cross-entropy beside half the squared
    weights.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_penalty, max_iter=iterations, fit_intercept=intercept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the bound of iterations is in the protocol
        return model.fit(x.numpy(), y.numpy())


def probabilities(model: Any, x: Tensor, classes: int) -> Tensor:
    """Of each class [N, classes]; -inf for a class without training images, which is no answer."""
    scores = torch.full((len(x), classes), -torch.inf, dtype=torch.float64)
    scores[:, model.classes_] = torch.from_numpy(model.predict_proba(x.numpy())).double()
    return scores
