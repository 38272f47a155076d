"""Batch statistics over all processes of a run; on one `mean`, `all_sum` and `gather` are the identity.

The batch is that of all processes together. Each takes a contiguous share, and shares may differ by an image:
inside `dividing` a process weighs as much as its share, outside of it all weigh the same. Gradients of
weights are averaged over processes by the same weights, which is what these functions are differentiated for.

Components that use statistics of the whole batch (a centre, Sinkhorn, keys of a contrastive loss) call these.
Nothing else in the package but `training.gradients` talks to other processes. Without a process group there
is one process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

_batch: int | None = None  # images of the batch that is divided now; threads of backward see it too


def rank() -> int:
    """The number of this process, which is its place in `gather`; 0 where there is one."""
    return distributed.get_rank() if _several() else 0


def processes() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if _several() else 1


def local_processes() -> int:
    """How many of the run's processes share this machine; all, where no launcher says otherwise."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return min(int(given), processes()) if given.isdecimal() and int(given) else processes()


def share(batch: int) -> slice:
    """The images of a batch that this process has; where division leaves a rest, the first have one more."""
    each, more = divmod(batch, processes())
    first = rank() * each + min(rank(), more)
    return slice(first, first + each + (rank() < more))


@contextmanager
def dividing(batch: int) -> Iterator[None]:
    """Inside, what is shared is a batch of so many images, at least one for each process."""
    global _batch
    before, _batch = _batch, batch
    try:
        yield
    finally:
        _batch = before


def weight() -> float:
    """The share of the batch that this process has, from 0 to 1."""
    return weights()[rank()]


def weights() -> list[float]:
    """The shares of all processes, which sum to 1."""
    count = processes()
    if _batch is None:
        return [1 / count] * count
    each, more = divmod(_batch, count)
    return [(each + (i < more)) / _batch for i in range(count)]


def whole(samples: int) -> int:
    """How many samples all processes have together, where this one has `samples`: one or more an image."""
    if _batch is None:
        return samples * processes()
    mine = share(_batch)
    return samples * _batch // (mine.stop - mine.start)


def place(samples: int) -> int:
    """How many samples the processes before this one have, where this one has `samples`."""
    if _batch is None:
        return samples * rank()
    mine = share(_batch)
    return samples * mine.start // (mine.stop - mine.start)


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over processes, elementwise, each weighted by its share; backward does the same.

    So the mean over the batch is `mean` of that over this process's images, and weights whose gradients are
    averaged over processes get the gradient of the whole batch.
    """
    return _Mean.apply(x) if _several() else x


def all_sum(x: Tensor) -> Tensor:
    """The sum of `x` over processes, elementwise; backward as that of `gather`."""
    return _Sum.apply(x) if _several() else x


def gather(x: Tensor) -> Tensor:
    """`x` of every process, joined along dimension 0, which may differ in length where shares do.

    Backward adds up what every process asks of its part, so weights whose gradients are averaged over
    processes get the gradient of the mean of their losses.
    """
    return _Gather.apply(x) if _several() else x


def stack(x: Tensor) -> Tensor:
    """`x` of every process, of one shape, along a new dimension 0; no gradient passes."""
    if not _several():
        return x.detach()[None]
    x = x.detach().contiguous()
    parts = [torch.empty_like(x) for _ in range(processes())]
    distributed.all_gather(parts, x)
    return torch.stack(parts)


def first_message(message: str) -> str:
    """The message of the first process that has one, on every process; empty where none has."""
    if not _several():
        return message
    # On the host: of a process group with a backend for each, gloo.
    said = torch.tensor([bool(message)], dtype=torch.uint8)
    distributed.all_reduce(said, op=distributed.ReduceOp.MAX)
    if not said.item():
        return ""
    messages: list[Any] = [None] * processes()
    distributed.all_gather_object(messages, message)
    return next(text for text in messages if text)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.weight = weight()
        return _sum(x * context.weight)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient * context.weight)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        context.weight = weight()
        return _sum(x.clone())

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient * context.weight) / context.weight


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        lengths = _lengths(x)
        context.weight, context.lengths = weight(), lengths
        longest = x.new_zeros(max(lengths), *x.shape[1:])
        longest[: len(x)] = x
        parts = [torch.empty_like(longest) for _ in lengths]
        distributed.all_gather(parts, longest)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        asked = _sum(gradient * context.weight) / context.weight
        return asked.split(context.lengths)[rank()]


def _sum(x: Tensor) -> Tensor:
    """The sum over processes, in place where memory allows."""
    x = x.contiguous()
    distributed.all_reduce(x)
    return x


def _lengths(x: Tensor) -> Sequence[int]:
    """The length of `x` on every process; asked for only where shares differ."""
    if _batch is None or _batch % processes() == 0:
        return [len(x)] * processes()
    return [int(length) for length in stack(torch.tensor([len(x)]))]


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
