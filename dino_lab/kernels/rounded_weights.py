"""Weights rounded to the precision of products, all at once rather than one by one as autocast does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@contextmanager
def rounded_weights(part: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Inside, linear and convolution layers of a part have weights and biases in `dtype`.

    In autocast of that type results and gradients are the same to the bit, but where a module takes a slice
    of a weight more than once. Other weights stay in float32.
    """
    if not (names := _names(part)):
        yield
        return
    rounded = _Rounded.apply(dtype, *map(part.get_parameter, names))
    with _reparametrize_module(part, dict(zip(names, rounded, strict=True)), tie_weights=False):
        yield


def _names(part: nn.Module) -> list[str]:
    """Of float32 weights and biases of layers that multiply and do nothing else."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in part.named_modules()
        if type(module) in PRODUCTS
        for name, weight in module.named_parameters(recurse=False)
        if weight.dtype == torch.float32
    ]


class _Rounded(torch.autograd.Function):
    """Copies of tensors in another type, and back of their gradients, by one operation each way."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtypes = [weight.dtype for weight in weights]
        copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
        torch._foreach_copy_(copies, weights)
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [i for i, gradient in enumerate(gradients) if gradient is not None]
        given = [gradient for gradient in gradients if gradient is not None]
        copies = [torch.empty_like(each, dtype=ctx.dtypes[i]) for i, each in zip(there, given, strict=True)]
        if copies:
            torch._foreach_copy_(copies, given)
        found = dict(zip(there, copies, strict=True))
        return None, *(found.get(i) for i in range(len(gradients)))
