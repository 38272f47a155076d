"""From the `optim` section of a spec to an optimizer, its rates and its clipping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.building.parameters import rate_factors
from dino_lab.kernels.scaling import scale_each
from dino_lab.network import Network
from dino_lab.protocols import HasLastLayer, ability
from dino_lab.spec.model import AdamW, Clip, Lars, Optim, Sgd


def make_optimizer(
    optim: AdamW | Sgd | Lars, student: Network, *, freeze_backbone: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of the student's parameters; `set_rates` gives it its rates before each step.

    `freeze_backbone` is the share of the run in which the backbone has no gradient.
    """
    groups = _groups(optim, student, freeze_backbone)
    match optim:
        case AdamW():
            return torch.optim.AdamW(groups, lr=0.0, betas=optim.betas, weight_decay=0.0, fused=True)
        case Sgd():
            return torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, weight_decay=0.0, fused=True)
        case Lars():
            return LarsOptimizer(
                groups, lr=0.0, momentum=optim.momentum, trust_coefficient=optim.trust_coefficient
            )


_ALSO = ("rate", "frozen_until")  # keys of a group that checkpoints of before lack


def _groups(optim: Optim, student: Network, freeze_backbone: float) -> list[dict[str, Any]]:
    """Parameters by what `set_rates` asks of them; biases and 1-D tensors never decay."""
    head = ability(student.head, HasLastLayer)
    last_layer, predictor = _ids(head.last_layer if head is not None else None), _ids(student.predictor)
    factors = rate_factors(optim, student)  # of the backbone
    groups: dict[tuple[bool, bool, bool, float, float], list[nn.Parameter]] = {}
    for p in student.parameters():
        if p.requires_grad:
            asked = (p.ndim > 1, id(p) in last_layer, id(p) in predictor)
            until = freeze_backbone if id(p) in factors else 0.0
            groups.setdefault((*asked, factors.get(id(p), 1.0), until), []).append(p)
    return [
        {
            **{"params": parameters, "decays": decays, "last_layer": last, "predictor": predicts},
            **{"rate": rate, "frozen_until": until},
        }
        for (decays, last, predicts, rate, until), parameters in groups.items()
    ]


def _ids(module: nn.Module | None) -> set[int]:
    return {id(p) for p in module.parameters()} if module is not None else set()


def load_optimizer(optimizer: torch.optim.Optimizer, student: Network, state: dict[str, Any]) -> None:
    """Put a state back that the optimizer of this student gave, also in version 0.1.0.

    That had three groups: matrices, biases and 1-D tensors, and the whole last layer. A state belongs to a
    parameter wherever it stands, so each is moved to the parameter's place of today.
    """
    now = optimizer.state_dict()
    if "predictor" not in state["param_groups"][0]:
        head = ability(student.head, HasLastLayer)
        last = _ids(head.last_layer if head is not None else None)
        parameters = [p for p in student.parameters() if p.requires_grad]
        rest = [p for p in parameters if id(p) not in last]
        matrices, vectors = [p for p in rest if p.ndim > 1], [p for p in rest if p.ndim <= 1]
        before = [*matrices, *vectors, *(p for p in parameters if id(p) in last)]
        places = {id(p): i for i, p in enumerate(before)}
        order = [id(p) for group in optimizer.param_groups for p in group["params"]]
        moved = {
            i: state["state"][places[key]] for i, key in enumerate(order) if places[key] in state["state"]
        }
        state = {"state": moved, "param_groups": now["param_groups"]}
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, now["param_groups"], strict=True):
        group.update({key: own[key] for key in _ALSO})


def set_rates(
    optimizer: torch.optim.Optimizer, optim: Optim, batch_size: int, progress: float
) -> tuple[float, float]:
    """Set learning rate and weight decay of every group for this step; return the two.

    To be called between `clip_gradients` and the optimizer's step: while the last layer or the backbone is
    frozen it takes their gradients away, so that neither weights nor their moments and step counts move (as
    DINO's code does, between the same two).
    """
    schedule = optim.lr.model_copy(update={"start": optim.lr.start * optim.lr_scaling.factor(batch_size)})
    if optim.lr.start == optim.lr.end:  # a constant has no floor that could stay behind
        schedule = schedule.model_copy(update={"end": schedule.start})
    lr, weight_decay = schedule(progress), optim.weight_decay(progress)
    frozen = progress < optim.freeze_last_layer
    for group in optimizer.param_groups:
        its = schedule.start if group["predictor"] and optim.constant_predictor_lr else lr
        group["lr"] = its * group["rate"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0
        if (frozen and group["last_layer"]) or progress < group["frozen_until"]:
            for p in group["params"]:
                p.grad = None
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
        scale_each(gradients, scales)
    return total


class LarsOptimizer(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888, Alg. 1), learning rate inside momentum.

    v = momentum * v + lr * local * (g + decay * w) and w = w - v, where the local rate of a matrix is
    trust * |w| / (|g| + decay * |w|), and 1 for vectors (biases, norms) and for weights that are all 0.
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
            moved = [w for w in group["params"] if w.grad is not None]
            self._move([w for w in moved if w.ndim > 1], group, adapts=True)
            self._move([w for w in moved if w.ndim <= 1], group, adapts=False)

    def _move(self, parameters: list[nn.Parameter], group: dict[str, Any], *, adapts: bool) -> None:
        weights: list[Tensor] = [*parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not weights:
            return
        for weight in weights:
            if "velocity" not in self.state[weight]:
                self.state[weight]["velocity"] = torch.zeros_like(weight)
        velocities: list[Tensor] = [self.state[weight]["velocity"] for weight in weights]
        decay = group["weight_decay"]
        steps = torch._foreach_add(gradients, weights, alpha=decay)
        if adapts:
            sizes = torch.stack(torch._foreach_norm(weights))
            lengths = torch.stack(torch._foreach_norm(gradients)) + decay * sizes
            local = group["trust_coefficient"] * sizes / lengths
            local = torch.where((sizes > 0) & (lengths > 0), local, torch.ones_like(local))
            scale_each(steps, local)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)
