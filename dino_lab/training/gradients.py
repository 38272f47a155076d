"""Gradients averaged over processes, while backward still computes others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from dino_lab import collectives

BUCKET = 4_000_000  # numbers that are sent at once


class AveragedGradients:
    """The gradients of parameters, each process weighted by its share of the batch; of one process its own.

    A parameter that has a gradient on no process keeps None.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = _buckets(parameters) if collectives.processes() > 1 else []
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        # A group of their own: losses and batch norm ask other processes during backward too.
        self._group = distributed.new_group() if self._buckets else None
        self._sent, self._last = 0, False
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in self._bucket_of]

    def close(self) -> None:
        """Leave the parameters as they were."""
        for hook in self._hooks:
            hook.remove()
        if self._group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self._group)

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Around the backward passes of a step; afterwards `grad` is that of the whole batch."""
        for bucket in self._buckets:
            bucket.missing = set(bucket.parameters)
        self._sent, self._last = 0, True
        yield
        self._send(len(self._buckets))
        for bucket in self._buckets:
            bucket.receive()

    @contextmanager
    def adding_up(self) -> Iterator[None]:
        """Around a backward pass after which there is more to come for the same parameters."""
        self._last = False
        yield
        self._last = True

    def _arrived(self, parameter: nn.Parameter) -> None:
        if not self._last:
            return
        self._bucket_of[parameter].missing.discard(parameter)
        ready = self._sent
        while ready < len(self._buckets) and not self._buckets[ready].missing:
            ready += 1
        self._send(ready)

    def _send(self, end: int) -> None:
        """In the same order on every process, whichever gradients come first."""
        for bucket in self._buckets[self._sent : end]:
            bucket.send(self._group)
        self._sent = max(self._sent, end)


class _Bucket:
    """Parameters whose gradients are sent as one tensor, and after them which of them there are."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.missing = parameters, set(parameters)
        self._sent: Tensor
        self._work: Any

    def send(self, group: Any) -> None:
        first = self.parameters[0]
        numbers = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        there = torch.tensor([p.grad is not None for p in self.parameters], dtype=first.dtype)
        there = there.to(first.device, non_blocking=True)
        self._sent = torch.cat([*(part.reshape(-1) for part in numbers), there]).mul_(collectives.weight())
        self._work = distributed.all_reduce(self._sent, group=group, async_op=True)

    def receive(self) -> None:
        self._work.wait()
        *parts, there = self._sent.split([*(p.numel() for p in self.parameters), len(self.parameters)])
        means = [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
        known = [i for i, p in enumerate(self.parameters) if p.grad is not None]
        if len(known) < len(self.parameters):
            elsewhere = [i for i, share in enumerate(there.tolist()) if share and i not in known]
            for i in elsewhere:
                self.parameters[i].grad = torch.empty_like(self.parameters[i])
            known += elsewhere
        if known:
            gradients = [p.grad for p in (self.parameters[i] for i in known) if p.grad is not None]
            torch._foreach_copy_(gradients, [means[i] for i in known])


def _buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """From the last parameter, whose gradient comes first, to the first."""
    buckets: list[list[nn.Parameter]] = []
    room = 0
    for parameter in reversed(parameters):
        if room < parameter.numel() or buckets[-1][0].dtype != parameter.dtype:
            buckets.append([])
            room = BUCKET
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return [_Bucket(its) for its in buckets]
