"""Networks of equal shape as one, so that a GPU gets few large operations instead of many small ones.

Their weights lie side by side in one tensor, and each network's own are views of it: whatever optimizers,
moving averages and checkpoints do to a network, they do to its part. Only by rounding does it differ from
networks by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino_lab.network import Network
from dino_lab.types import Output

Tensors = dict[str, Tensor]
CONSTANT = ("mean", "std")  # buffers of a network that never change


class Stack:
    """Several networks, applied at once: of equal shapes, in the same mode, and without random numbers."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = list(networks)
        for network in networks:
            network.rounded_to = None  # autocast rounds the weights of all networks, which are one tensor
        self._weights = _side_by_side([dict(network.named_parameters()) for network in networks])
        buffers = _side_by_side([dict(network.named_buffers()) for network in networks])
        # Equal normalisation leaves what all of them see one tensor.
        self._common = {name: buffers[name][0] for name in CONSTANT if _all_equal(buffers[name])}
        self._buffers = {name: buffer for name, buffer in buffers.items() if name not in self._common}

    def __call__(self, crops: Sequence[list[Tensor]]) -> list[Output]:
        """What each network gives for its crops, by size [V, B, C, H, W]; all may see the same tensors."""
        common = all(a is b for one in crops for a, b in zip(one, crops[0], strict=True))
        given = crops[0] if common else [torch.stack(group) for group in zip(*crops, strict=True)]
        with _attention(given[0].device):
            found = vmap(self._one, in_dims=(0, 0, None if common else 0))(
                self._weights, self._buffers, given
            )
        return [Output(*each) for each in zip(*(tensor.unbind() for tensor in found), strict=True)]

    def _one(self, weights: Tensors, buffers: Tensors, crops: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        out: Output = functional_call(self._networks[0], (weights, buffers, self._common), (crops,))
        return out.features, out.z, out.p

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for weight in self._weights.values():
            weight.grad = None

    def hand_out_gradients(self) -> None:
        """Give each network its part of the gradients, but for parameters that it has frozen."""
        for name, weight in self._weights.items():
            parts = [None] * len(self._networks) if weight.grad is None else weight.grad.unbind()
            for network, part in zip(self._networks, parts, strict=True):
                parameter = network.get_parameter(name)
                parameter.grad = part if parameter.requires_grad else None


def _side_by_side(states: Sequence[Tensors]) -> Tensors:
    """One tensor [n, ...] for each name; the tensors of the n states are views of it from now on."""
    whole = {}
    for name in states[0]:
        whole[name] = torch.stack([state[name].detach() for state in states])
        for state, part in zip(states, whole[name].unbind(), strict=True):
            state[name].data = part
        whole[name].requires_grad_(any(state[name].requires_grad for state in states))
    return whole


def _all_equal(whole: Tensor) -> bool:
    return whole.is_meta or bool((whole == whole[0]).all())


def _attention(device: torch.device) -> AbstractContextManager[object]:
    """The fused attention of a CPU takes no stack; what it computes, written out, does."""
    return nullcontext() if device.type == "cuda" else sdpa_kernel(SDPBackend.MATH)
