"""From the `optim` section of a spec to an optimizer, its rates and its clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.network import Network
from dino_lab.protocols import HasLastLayer, ability
from dino_lab.spec.model import AdamW, Clip, Lars, Optim, Sgd
from dino_lab.training.lars import LarsOptimizer


def make_optimizer(optim: AdamW | Sgd | Lars, student: Network) -> torch.optim.Optimizer:
    """The optimizer of the student's parameters; `set_rates` gives it its rates before each step."""
    groups = _groups(student)
    match optim:
        case AdamW():
            return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, weight_decay=0.0, fused=True)
        case Sgd():
            return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, weight_decay=0.0, fused=True)
        case Lars():
            return LarsOptimizer(
                groups, lr=0.0, momentum=optim.momentum, trust_coefficient=optim.trust_coefficient
            )


def _groups(student: Network) -> list[dict[str, Any]]:
    """Weights, biases and 1-D tensors (never decayed), and the head's last layer (may be held still)."""
    head = ability(student.head, HasLastLayer)
    last = set() if head is None else {id(p) for p in head.last_layer.parameters()}
    parameters = [p for p in student.parameters() if p.requires_grad]
    rest = [p for p in parameters if id(p) not in last]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "decays": True, "last_layer": False},
        {"params": [p for p in rest if p.ndim <= 1], "decays": False, "last_layer": False},
        {"params": [p for p in parameters if id(p) in last], "decays": True, "last_layer": True},
    ]
    return [group for group in groups if group["params"]]


def set_rates(
    optimizer: torch.optim.Optimizer, optim: Optim, batch_size: int, progress: float
) -> tuple[float, float]:
    """Set learning rate and weight decay of every group for this step; return the two."""
    schedule = optim.lr.model_copy(update={"start": optim.lr.start * optim.lr_scaling.factor(batch_size)})
    if optim.lr.start == optim.lr.end:  # a constant has no floor that could stay behind
        schedule = schedule.model_copy(update={"end": schedule.start})
    lr, weight_decay = schedule(progress), optim.weight_decay(progress)
    frozen = progress < optim.freeze_last_layer
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if frozen and group["last_layer"] else lr
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
    return lr, weight_decay


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], clip: Clip | None) -> Tensor:
    """Clip in place, without waiting for the device; return the norm of all gradients before it."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients)
    total = torch.linalg.vector_norm(torch.stack(norms))
    if clip is not None:
        per = torch.stack(norms) if clip.per == "tensor" else total.expand(len(norms))
        scales = (clip.norm / (per + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(scales.unbind()))
    return total
