"""The LARS optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class LarsOptimizer(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888, Alg. 1).

    The step of a matrix w with gradient g is scaled by trust * |w| / |g + decay * w|; vectors (biases,
    norms) take the plain momentum step.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, lr: float, momentum: float, trust_coefficient: float
    ) -> None:
        super().__init__(
            groups,
            {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "trust_coefficient": trust_coefficient},
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        step = weight.grad.add(weight, alpha=group["weight_decay"])  # type: ignore[union-attr]
        if weight.ndim > 1:
            size, length = weight.norm(), step.norm()
            ratio = group["trust_coefficient"] * size / length
            step *= torch.where((size > 0) & (length > 0), ratio, torch.ones_like(ratio))
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].mul_(group["momentum"]).add_(step)
        weight.sub_(state["momentum"] * group["lr"])
