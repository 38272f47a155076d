"""From a `Spec` to a `Run`: everything that training needs, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from dino_lab.building.check import check
from dino_lab.building.components import make_component, make_evaluators, make_method, misfits
from dino_lab.building.data_check import check_data, check_labelled, scorable
from dino_lab.building.execution import arrange, arrange_training, autocast
from dino_lab.building.seeding import crop_generator
from dino_lab.building.token_objective import TokenObjective
from dino_lab.collectives import rank
from dino_lab.evaluation.scoring import Scored, score
from dino_lab.network import Network
from dino_lab.protocols import (
    Augment,
    ChecksClasses,
    Data,
    Evaluator,
    Loss,
    Regularizer,
    SharedData,
    Targets,
    Teacher,
    ability,
)
from dino_lab.registry import Registry
from dino_lab.runs.rows import REGULARIZER
from dino_lab.schedule import Progress
from dino_lab.spec.model import Spec
from dino_lab.training.optimizer import load_optimizer, make_optimizer

STATEFUL = ("student", "teacher", "targets", "loss", "optimizer")


@dataclass(frozen=True)
class Run:
    """Everything live that a spec describes; owns all state."""

    spec: Spec
    device: torch.device
    data: Data  # to train on
    evaluation_data: Data  # the same, unless the spec has `evaluate_on`
    augment: Augment
    student: Network
    teacher: Teacher
    targets: Targets
    loss: Loss
    token_objective: TokenObjective | None
    regularizers: dict[str, Regularizer]  # by the name that a row gives them
    evaluators: dict[str, Evaluator]  # by the name that a row gives them
    left_out: tuple[str, ...]  # evaluators that the data cannot be scored by
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    said: tuple[str, ...] = ()  # how first weights came into the networks

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return self.data.train_images // self.spec.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.spec.train.epochs

    def progress(self, step: int) -> Progress:
        """The share of the run that is over before step `step` (from 0)."""
        return Progress(step, self.steps_per_epoch, self.spec.train.epochs)

    def place(self, step: int) -> int:
        """The number of a step that decides its random numbers: it counts on from the stages before."""
        return step + self.spec.epochs_before * self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step` (from 0) is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def generator(self, step: int) -> torch.Generator:
        """The source of every random number of the crops of this step."""
        return crop_generator(self.spec.seed, self.place(step))

    def autocast(self) -> torch.autocast:
        """The precision of the networks' matrix products."""
        return autocast(self.device, self.spec.train)

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, part in self._stateful().items():
            if name == "optimizer":
                load_optimizer(self.optimizer, self.student, state[name])
            else:
                part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        tokens = {} if self.token_objective is None else {"token_objective": self.token_objective}
        return {part: getattr(self, part) for part in STATEFUL} | tokens | self.regularizers

    def network(self, of: str) -> Network:
        """The teacher's network if `of` is "teacher" and it has one, else the student."""
        return self.teacher.network if of == "teacher" and self.teacher.network is not None else self.student

    def due(self, steps: int) -> list[tuple[str, Evaluator]]:
        """Name and evaluator of those that are due after so many steps: at 0 and at the ends of epochs."""
        epoch, inside = divmod(steps, self.steps_per_epoch)
        last = steps == self.total_steps
        return [(n, e) for n, e in self.evaluators.items() if not inside and (last or epoch % e.every == 0)]

    def evaluate(self, evaluators: Sequence[tuple[str, Evaluator]]) -> list[Scored]:
        """What these evaluators, by name, measure of the networks as they are now."""
        return score(evaluators, self.evaluation_data, self.network, self.augment.groups[0][1], self.autocast)


def build(
    spec: Spec,
    registry: Registry,
    device: torch.device,
    shared: SharedData | None = None,
    *,
    first_weights: bool = True,
) -> Run:
    """All parts, seeded one by one, so that changing one leaves the first weights of the others alone.

    `shared` is what the spec's own data part would give, where it is in memory already. Without
    `first_weights` those of `init` are not read, since others follow, as they do after another run. A Misfit
    says which parts do not go together.
    """
    first_weights = first_weights and spec.after is None
    check(spec, registry, first_weights=first_weights)
    make = partial(make_component, spec, registry, device)
    data: Data = shared.to(device) if shared else make("data", device)
    augment: Augment = make("augment")
    evaluation_data, evaluators, left_out = _evaluation(spec, registry, device, data)
    check_data(data, augment, evaluators.values(), spec.train.batch_size, device, evaluation_data)
    method = make_method(
        *(spec, registry, device, augment),
        channels=data.channels,
        mean=data.mean,
        std=data.std,
        first_weights=first_weights,
    )
    if (checking := ability(method.teacher, ChecksClasses)) is not None:
        check_labelled(spec.teacher.name, data)
        with misfits("head", "dim"):
            checking.check_classes(data.classes)
    parts: tuple[Any, ...] = (method.student, method.teacher)  # which may have a network of its own
    for part in parts:
        arrange(part, spec.train, device)
    for network in filter(None, (method.student, method.teacher.network)):
        arrange_training(network, spec.train, device)
    return Run(
        spec=spec,
        device=device,
        data=data,
        evaluation_data=evaluation_data,
        evaluators=evaluators,
        left_out=left_out,
        **vars(method)
        | {"regularizers": {REGULARIZER + name: part for name, part in method.regularizers.items()}},
        optimizer=make_optimizer(
            spec.optim, method.student, freeze_backbone=spec.init.freeze if spec.init is not None else 0.0
        ),
        parameters=[p for p in method.student.parameters() if p.requires_grad],
    )


_KEPT: WeakValueDictionary[str, Data] = WeakValueDictionary()  # of runs that are alive, such as a stack's


def _evaluation(
    spec: Spec, registry: Registry, device: torch.device, data: Data
) -> tuple[Data, dict[str, Evaluator], tuple[str, ...]]:
    """The data that evaluators see, those that can be scored by it, and the names of the others."""
    asked = make_evaluators(spec.evaluators, registry)
    if spec.evaluate_on is None:
        return data, *scorable(asked, data)
    if rank() > 0:  # the first process alone evaluates
        return data, {}, ()
    evaluation_data = _evaluation_data(spec, registry, device)
    return evaluation_data, *scorable(asked, evaluation_data)


def _evaluation_data(spec: Spec, registry: Registry, device: torch.device) -> Data:
    """The data of `evaluate_on`, shared by all runs of this process that may share them."""
    assert spec.evaluate_on is not None
    key = f"{device} {spec.evaluate_on.model_dump_json()}"
    if (kept := _KEPT.get(key)) is not None:
        return kept
    data: Data = make_component(spec, registry, device, "evaluate_on", device)
    if ability(data, SharedData) is not None:
        _KEPT[key] = data
    return data
