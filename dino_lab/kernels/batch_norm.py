"""Batch norm over the images of every process.

torch's SyncBatchNorm refuses tensors of a CPU and weighs processes by what they hold now; this one works with
any process group, also where shares of the batch differ. On one process the layers stay torch's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dino_lab import collectives
from dino_lab.types import at_least_float32

_suspended = False


def synchronise_batch_norm(part: nn.Module) -> None:
    """Let batch norm in training mode use the statistics of the whole batch, where processes divide it."""
    if collectives.processes() == 1:
        return
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, _Synchronised):
            module.__class__ = _synchronised(cast(Any, type(module)))


class _Synchronised:
    """Mixed into a layer: what its `forward` asks of `F.batch_norm` is asked of every process."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] to the same shape."""
        with nullcontext() if _suspended else _OverProcesses():
            return super().forward(x)  # type: ignore[misc]


@contextmanager
def unsynchronised() -> Iterator[None]:
    """Inside, layers ask `F.batch_norm` alone; for what takes its place."""
    global _suspended
    before, _suspended = _suspended, True
    try:
        yield
    finally:
        _suspended = before


@cache
def _synchronised(cls: type) -> type:
    return type(f"Synchronised{cls.__name__}", (_Synchronised, cls), {})


class _OverProcesses(TorchFunctionMode):
    # Not a layer of its own: others derive from torch's, and do more in `forward` (timm's BatchNormAct2d).
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of x [N, C, ...], in training with mean and variance over N and all that follows C, of
    every process (Ioffe and Szegedy, arXiv 1502.03167, Alg. 1).

    The gradient is that of the mean of losses over processes, weighted by their shares of the batch.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    found = over_processes(statistics(x.detach()))
    if running_mean is not None and running_var is not None:
        move_running(running_mean, running_var, found, x.numel() // x.shape[1], momentum)
    y: Tensor = _Normalise.apply(x, *found.unbind(), weight, bias, eps)
    return y


def statistics(x: Tensor) -> Tensor:
    """Mean and biased variance [2, C] of x [N, C, ...], in float32 at least."""
    x, over = at_least_float32(x), [0, *range(2, x.ndim)]
    if x.device.type == "cpu":  # where var_mean takes ten times as long as two passes
        mean = x.mean(over, keepdim=True)
        return torch.stack([mean.flatten(), (x - mean).square().mean(over)])
    variance, mean = torch.var_mean(x, over, correction=0)
    return torch.stack([mean, variance])


def joined(each: Tensor, shares: Sequence[float]) -> Tensor:
    """Statistics [2, C] of what is in parts, of their statistics [parts, 2, C] and shares, which sum to 1.

    Chan, Golub and LeVeque (1979), Eq. 2.1, for any number of parts.
    """
    weights = each.new_tensor(shares)[:, None]
    means, variances = each.unbind(1)  # [parts, C]
    mean = (weights * means).sum(0)
    return torch.stack([mean, (weights * (variances + (means - mean).square())).sum(0)])


def over_processes(found: Tensor) -> Tensor:
    """Statistics [2, C] of the whole batch, of those of each process."""
    return joined(collectives.stack(found), collectives.weights())


@torch.no_grad()
def move_running(
    running_mean: Tensor, running_var: Tensor, found: Tensor, count: int, momentum: float
) -> None:
    """Move running statistics towards those of the whole batch, of which this process has `count` values.

    The variance without bias, as torch's layers.
    """
    mean, variance = found
    values = collectives.whole(count)
    running_mean.lerp_(mean.to(running_mean), momentum)
    running_var.lerp_((variance * (values / max(values - 1, 1))).to(running_var), momentum)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance depend on every x."""

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        context.save_for_backward(x, mean, variance, weight)
        context.eps = eps
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, weight = context.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        # What it would be if mean and variance were constants; of weight and bias that is all.
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradient, x, scale, mean, variance, None, None, False, context.eps, [True, True, True]
        )
        # Then the mean of the gradient and of its product with the normalised x are taken away (Ioffe and
        # Szegedy, Sec. 3, the equations of the gradient).
        sums = collectives.mean(torch.stack([of_bias, of_weight]).to(mean))
        inverse = (variance + context.eps).rsqrt()
        constant, slope = (-scale * inverse * sums / (collectives.weight() * _count(x))).unbind()
        shape = [1, -1, *[1] * (x.ndim - 2)]
        slope = slope * inverse
        of_x.addcmul_(x, slope.view(shape).to(x)).add_((constant - slope * mean).view(shape).to(x))
        _, _, _, has_weight, has_bias, _ = context.needs_input_grad
        return of_x, None, None, of_weight if has_weight else None, of_bias if has_bias else None, None


def _count(x: Tensor) -> int:
    """Values of a channel in all processes."""
    return collectives.whole(x.numel() // x.shape[1])
