"""Networks that no gradient reaches."""

from __future__ import annotations

import copy

from torch import nn

from dino_lab.network import Network


def twin(student: Network) -> Network:
    """A copy without predictor, gradients, dropout and stochastic depth."""
    return at_rest(copy.deepcopy(student))


def at_rest(network: Network) -> Network:
    """The network itself, from now on without predictor, gradients, dropout and stochastic depth."""
    network.predictor = None
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # timm's DropPath
            vars(module)["drop_prob"] = 0.0
    return network.requires_grad_(False)
