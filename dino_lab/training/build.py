"""From a `Spec` to a `Run`: everything live, and its state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dino_lab.building.check import check, checkpoint_gradients
from dino_lab.building.components import make_method, make_part, misfits
from dino_lab.building.seeding import crop_generator
from dino_lab.errors import Misfit
from dino_lab.evaluation.encoder import Encoder
from dino_lab.evaluation.scoring import Scored, frozen, network_of, score
from dino_lab.kernels.linear import use_faster_linear
from dino_lab.network import Network
from dino_lab.protocols import Augment, Data, Evaluator, Loss, Regularizer, SharedData, Targets, Teacher
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec, Train
from dino_lab.training.optimizer import make_optimizer

STATEFUL = ("student", "teacher", "targets", "loss", "optimizer")


@dataclass(frozen=True)
class Run:
    """Everything live that a spec describes; owns all state."""

    spec: Spec
    device: torch.device
    data: Data
    augment: Augment
    student: Network
    teacher: Teacher
    targets: Targets
    loss: Loss
    regularizers: dict[str, Regularizer]  # by the name that a row gives them
    evaluators: dict[str, Evaluator]  # by the name that a row gives them
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return self.data.train_images // self.spec.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.spec.train.epochs

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step` (from 0) is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def generator(self, step: int) -> torch.Generator:
        """The source of every random number of the crops of this step."""
        return crop_generator(self.spec.seed, step)

    def autocast(self) -> torch.autocast:
        """The precision of the networks' matrix products."""
        return autocast(self.device, self.spec.train)

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {part: getattr(self, part) for part in STATEFUL} | self.regularizers

    def network(self, of: str) -> Network:
        """The teacher's network if `of` is "teacher" and it has one, else the student."""
        return network_of(of, self.student, self.teacher)

    def due(self, steps: int) -> list[tuple[str, Evaluator]]:
        """Name and evaluator of those that are due after so many steps: at 0 and at the ends of epochs."""
        epoch, inside = divmod(steps, self.steps_per_epoch)
        last = steps == self.total_steps
        return [(n, e) for n, e in self.evaluators.items() if not inside and (last or epoch % e.every == 0)]

    def evaluate_after(self, steps: int) -> list[Scored]:
        """What the evaluators find that are due after so many steps."""
        return self.evaluate(self.due(steps))

    def evaluate(self, evaluators: Sequence[tuple[str, Evaluator]]) -> list[Scored]:
        """What these evaluators, by name, find of the networks as they are now."""
        return score(evaluators, self.data, self.network, self.augment.groups[0][1], self.autocast)

    @contextmanager
    def encoder(self, of: str) -> Iterator[Encoder]:
        """The teacher's network, or the student's, in evaluation mode, at the size of the teacher's crops."""
        network = self.network(of)
        with frozen(network):
            yield Encoder(network, self.augment.groups[0][1], self.autocast)


def build(spec: Spec, registry: Registry, device: torch.device, shared: SharedData | None = None) -> Run:
    """All parts, seeded one by one, so that changing one leaves the first weights of the others alone.

    `shared` is what the spec's own data part would give, where it is in memory already.
    """
    check(spec, registry)
    data: Data = shared.to(device) if shared else make_part(spec, registry, device, "data", device)
    if not data.train_images:
        raise Misfit(("data",), "there is no training split, so nothing can be trained on it")
    if spec.train.batch_size > data.train_images:
        raise Misfit(
            ("train", "batch_size"),
            f"{spec.train.batch_size} is more than the {data.train_images} training images there are",
        )
    augment = make_part(spec, registry, device, "augment")
    method = make_method(
        spec, registry, device, augment, channels=data.channels, mean=data.mean, std=data.std
    )
    if hasattr(method.teacher, "check_classes"):
        with misfits("head", "dim"):
            method.teacher.check_classes(data.classes)
    for network in filter(None, (method.student, method.teacher.network)):
        _apply(spec.train, network)
    parts: tuple[Any, ...] = (method.student, method.teacher)  # which may have another network of its own
    for part in parts:
        use_faster_linear(part, device)
    return Run(
        spec=spec,
        device=device,
        data=data,
        **vars(method),
        optimizer=make_optimizer(spec.optim, method.student),
        parameters=[p for p in method.student.parameters() if p.requires_grad],
    )


def autocast(device: torch.device, settings: Train) -> torch.autocast:
    """The precision of the networks' matrix products, as a context."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")


def _apply(settings: Train, network: Network) -> None:
    """How the network is computed, which changes nothing of what it says but rounding."""
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)
    if settings.gradient_checkpointing:
        checkpoint_gradients(network)
    if settings.compile:
        network.compile()
