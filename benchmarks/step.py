"""A training step against the same step written as facebookresearch/dino writes it.

Both get the same crops and start from the same weights; the first losses must agree. The step of the
reference, from a reading of it: one backbone call per crop size and one head call, a Python loop over pairs
of views, a clip per tensor that reads each norm with `.item()`, `torch.optim.AdamW` with its defaults, and a
Python loop for the moving average.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.report import section, spread, table
from dino_lab.registry import registry
from dino_lab.spec.file import load
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build
from dino_lab.training.loop import train
from dino_lab.types import Views

ROUNDS = 9


class Fixed:
    """An augmentation that gives the same crops for every batch, so that only the step is timed."""

    def __init__(self, views: Views, like: Run) -> None:
        self.views, self.pairs, self.groups = views, like.augment.pairs, like.augment.groups

    def forward(self, images: Tensor, generator: torch.Generator) -> Views:
        return self.views


class ReferenceStep:
    """The reference's way of doing one step."""

    def __init__(self, run: Run) -> None:
        self.student, self.teacher = copy.deepcopy(run.student), copy.deepcopy(run.student)
        self.teacher.requires_grad_(False)
        decayed = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=5e-4 / 4, weight_decay=0.04)
        self.center = torch.zeros(1)

    def __call__(self, crops: list[Tensor]) -> float:
        """One step on normalised crops by size, each [V, B, C, H, W]; the loss."""
        teacher = _forward(self.teacher, crops[:1]).detach()
        student = _forward(self.student, crops)
        loss = self._loss(student, teacher, len(crops[0]), sum(len(group) for group in crops))
        value = loss.item()
        self.optimizer.zero_grad()
        loss.backward()
        _clip(self.student, 3.0)
        self.optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                theirs.data.mul_(0.996).add_((1 - 0.996) * ours.detach().data)
        return value

    def _loss(self, student: Tensor, teacher: Tensor, T: int, S: int) -> Tensor:
        predictions = (student / 0.1).chunk(S)
        targets = F.softmax((teacher - self.center) / 0.04, dim=-1).detach().chunk(T)
        total, terms = torch.zeros(()), 0
        for t, target in enumerate(targets):
            for s, prediction in enumerate(predictions):
                if s == t:
                    continue
                total = total + torch.sum(-target * F.log_softmax(prediction, dim=-1), dim=-1).mean()
                terms += 1
        self.center = self.center * 0.9 + teacher.mean(0, keepdim=True) * 0.1
        return total / terms


def _forward(network: Any, crops: list[Tensor]) -> Tensor:
    # timm's model, which computes its last block for all tokens as the reference does, not our backbone.
    model: Any = network.backbone.model
    features = torch.cat([model(group.flatten(0, 1)) for group in crops])
    return network.head(features)


def _clip(network: nn.Module, limit: float) -> None:
    for parameter in network.parameters():
        if parameter.grad is not None:
            norm = parameter.grad.data.norm(2).item()
            if limit / (norm + 1e-6) < 1:
                parameter.grad.data.mul_(limit / (norm + 1e-6))


def prepare(precision: str) -> tuple[Run, Views]:
    """A run whose every batch gives the same crops."""
    spec = load(Path(__file__).with_name("step.yaml"), [f"train.precision={precision}"]).spec
    run = build(spec, registry, torch.device("cpu"))
    images, _ = next(run.data.train(spec.train.batch_size, 0, 0))
    views = run.augment.forward(images, run.generator(0))
    return replace(run, augment=Fixed(views, run)), views


def first_losses() -> tuple[float, float]:
    """Loss of the first step, ours and the reference's, without stochastic depth."""
    run, views = prepare("float32")
    for module in run.student.modules():
        if hasattr(module, "drop_prob"):
            vars(module)["drop_prob"] = 0.0
    reference = ReferenceStep(run)
    # log_every hides most losses: take the one number that the step itself computes.
    row = next(train(replace(run, spec=_every_row(run))))
    return row.numbers["loss"], reference(_normalised(run, views))


def _normalised(run: Run, views: Views) -> list[Tensor]:
    # The reference's loaders do it; ours is a part of the step.
    return [run.student.normalize(group) for group in views.crops]


def _every_row(run: Run) -> Spec:
    return run.spec.model_copy(update={"train": run.spec.train.model_copy(update={"log_every": 1})})


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> str:
    """Interleaved rounds of the three steps."""
    ours, theirs = first_losses()
    assert abs(ours - theirs) < 1e-4 * theirs, (ours, theirs)
    full, views = prepare("float32")
    half, _ = prepare("bfloat16")
    reference, crops = ReferenceStep(full), _normalised(full, views)
    rows: dict[str, Iterator[object]] = {"float32": train(full), "bfloat16": train(half)}
    steps: dict[str, Callable[[], object]] = {
        "as the reference, float32": lambda: reference(crops),
        "dino-lab, float32": lambda: next(rows["float32"]),
        "dino-lab, bfloat16": lambda: next(rows["bfloat16"]),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(ROUNDS + 1):
        for name, step in steps.items():
            seconds = _timed(step)
            if round_:  # the first round warms up
                times[name].append(seconds)
    base = times["as the reference, float32"]
    lines = [
        [
            name,
            spread([64 / t for t in seconds], 1),
            spread([a / b for a, b in zip(base, seconds, strict=True)]),
        ]
        for name, seconds in times.items()
    ]
    text = (
        f"First loss, same weights and crops: {ours:.6f} here, {theirs:.6f} as the reference writes it.\n\n"
    )
    text += table(["step", "images/s, median (range)", "times the reference, in pairs"], lines)
    return section("Training step: ViT-T/4, 32 px, 2 + 6 crops, batch 64", "python -m benchmarks.step", text)


if __name__ == "__main__":
    print(main())
