"""A copy of the student that no gradient reaches."""

from __future__ import annotations

import copy

from torch import nn

from dino_lab.network import Network


def twin(student: Network) -> Network:
    """A copy without predictor, gradients, dropout and stochastic depth."""
    network = copy.deepcopy(student)
    network.predictor = None
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        if hasattr(module, "drop_prob"):  # timm's DropPath
            vars(module)["drop_prob"] = 0.0
    return network.requires_grad_(False)
