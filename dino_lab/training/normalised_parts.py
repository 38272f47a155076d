"""Batch norm of a network that sees a batch in parts, with the statistics of the whole batch.

Statistics are measured layer after layer: of the first by a pass over all parts that ends there, of the
second by a pass in which those of the first are known, and so on. For the gradient they are variables that
all parts have in common. Theirs is found from the last layer to the first, each by a pass over all parts;
weights then get what reaches them from the outputs and from the statistics. So each layer costs one forward
and one backward pass more, and the memory is that of one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dino_lab import collectives
from dino_lab.kernels.batch_norm import joined, move_running, over_processes, statistics, unsynchronised


@dataclass
class _Layer:
    """One call of batch norm, which every part makes."""

    counts: list[int] = field(default_factory=list)  # values of a channel, of each part
    each: list[Tensor] = field(default_factory=list)  # mean and variance [2, C] of each part
    running: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0)  # mean, variance, momentum
    found: Tensor | None = None  # mean and variance of the whole batch, [2, C]
    gradient: Tensor | None = None  # [2, C], of the mean of losses over processes


class NormalisedParts(TorchFunctionMode):
    """Takes the place of `F.batch_norm` in training while a network sees one part after the other."""

    def __init__(self) -> None:
        self._layers: list[_Layer] = []
        self._calls = 0
        self._measuring, self._asked = True, -1  # the layer whose statistics are variables, if any
        self.terms: list[tuple[Tensor, Tensor]] = []  # what statistics owe to this part, and its gradient

    @property
    def layers(self) -> range:
        """The layers that were met."""
        return range(len(self._layers))

    @contextmanager
    def part(self) -> Iterator[None]:
        """Around the forward pass of a part; while statistics are measured it may end early."""
        self._calls, self.terms = 0, []
        try:
            with unsynchronised(), self:
                yield
        except _Unknown:
            assert self._measuring

    def settle(self) -> bool:
        """After a pass over all parts: whether statistics became known, so that another one is needed."""
        if not self._layers or self._layers[-1].found is not None:
            self._measuring = False
            return False
        layer = self._layers[-1]
        shares = [count / sum(layer.counts) for count in layer.counts]
        layer.found = over_processes(joined(torch.stack(layer.each), shares))
        return True

    def move_running(self) -> None:
        """Move the running statistics of every layer, once a batch."""
        for layer in self._layers:
            mean, variance, momentum = layer.running
            if mean is not None and variance is not None and layer.found is not None:
                move_running(mean, variance, layer.found, sum(layer.counts), momentum)

    @contextmanager
    def asking(self, number: int) -> Iterator[Tensor]:
        """Inside, the statistics of a layer are the variable that is given, [2, C]."""
        layer = self._layers[number]
        assert layer.found is not None
        settled, layer.found = layer.found, layer.found.detach().clone().requires_grad_()
        self._asked = number
        try:
            yield layer.found
        finally:
            layer.found, self._asked = settled, -1

    def answer(self, number: int, gradient: Tensor) -> None:
        """The gradient of a layer's statistics, added up over this process's parts."""
        self._layers[number].gradient = collectives.mean(gradient)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Any function of torch; batch norm in training is another one here."""
        return (self._batch_norm if func is F.batch_norm else func)(*args, **kwargs or {})

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        number, self._calls = self._calls, self._calls + 1
        if number == len(self._layers):
            self._layers.append(_Layer(running=(running_mean, running_var, momentum)))
        layer = self._layers[number]
        if layer.found is None:
            layer.counts.append(x.numel() // x.shape[1])
            layer.each.append(statistics(x))
            raise _Unknown
        if not self._measuring and layer.gradient is not None and number > self._asked:
            self.terms.append((_owed(x, layer), layer.gradient))
        return _normalised(x, layer.found, weight, bias, eps)


class _Unknown(Exception):
    """A layer whose statistics are not known yet."""


def _owed(x: Tensor, layer: _Layer) -> Tensor:
    """What mean and variance [2, C] of this process's values owe to those of one part, to be differentiated.

    The variance does not change with the mean, to first order, so that this may be a constant in it.
    """
    assert layer.found is not None
    dims = [0, *range(2, x.ndim)]
    centred = x - _by_channel(layer.found[0].detach(), x)
    share = (x.numel() // x.shape[1]) / sum(layer.counts)
    return share * torch.stack([x.mean(dims), centred.square().mean(dims)])


def _normalised(x: Tensor, found: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if not found.requires_grad:
        return F.batch_norm(x, found[0], found[1], weight, bias, False, 0.0, eps)
    mean, variance = found
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    y = (x - _by_channel(mean, x)) * _by_channel(scale, x)
    return (y if bias is None else y + _by_channel(bias, x)).to(x.dtype)


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (x.ndim - 2))
