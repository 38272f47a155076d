"""Components from a spec, seeded one by one. The only file that knows what each kind is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dino_lab.building.first_weights import give_rest, give_student
from dino_lab.building.parameters import freeze
from dino_lab.building.seeding import seed_everything
from dino_lab.building.size import few_layers
from dino_lab.building.token_objective import TokenObjective
from dino_lab.errors import Misfit, UserError, first_line
from dino_lab.network import Network
from dino_lab.protocols import Augment, Evaluator, Loss, Regularizer, Targets, Teacher
from dino_lab.registry import Params, Registry
from dino_lab.registry.kinds import KIND_OF_FIELD
from dino_lab.spec.model import Spec


@dataclass(frozen=True)
class Method:
    """The parts of a spec that are the same whatever the data: what is learned, and how."""

    augment: Augment
    student: Network
    teacher: Teacher
    targets: Targets
    loss: Loss
    token_objective: TokenObjective | None
    regularizers: dict[str, Regularizer]
    said: tuple[str, ...] = ()  # how first weights came into the networks


def make_method(
    spec: Spec,
    registry: Registry,
    device: torch.device,
    augment: Augment,
    *,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    first_weights: bool = True,
) -> Method:
    """All parts but data and evaluators, for images of so many channels with such statistics.

    Without `first_weights` those that `init` names are not read: a checkpoint follows.
    """

    def make(field: str, *context: Any) -> Any:
        return make_component(spec, registry, device, field, *context)

    backbone = make("backbone", channels, max(pixels for _, pixels in augment.groups))
    head = make("head", backbone.dim)
    predictor = make("predictor", head.dim) if spec.predictor is not None else None
    token_head = None
    if spec.token_loss is not None:
        token_head = nn.Identity() if spec.token_head is None else make("token_head", backbone.dim)
    student = Network(backbone, head, predictor, token_head=token_head, mean=mean, std=std).to(device)
    init = spec.init if first_weights else None
    if init is not None:
        with misfits("init", "from"):
            said = give_student(init, student)
    freeze(student, spec.optim.freeze)
    teacher, targets = make("teacher", student), make("targets", head.dim)
    if init is not None:
        with misfits("init", "from"):
            give_rest(init, teacher, targets)
    return Method(
        augment=augment,
        student=student,
        teacher=teacher,
        targets=targets,
        loss=make("loss", head.dim),
        token_objective=_token_objective(spec, make, getattr(token_head, "dim", backbone.dim)),
        regularizers=_regularizers(spec, registry, device),
        said=said if init is not None else (),
    )


def _token_objective(spec: Spec, make: Callable[..., Any], dim: int) -> TokenObjective | None:
    if spec.token_loss is None:
        return None
    targets = None if spec.token_targets is None else make("token_targets", dim)
    return TokenObjective(targets, make("token_loss", dim), spec.token_weight)


def make_evaluators(evaluators: Sequence[Params], registry: Registry) -> dict[str, Evaluator]:
    """Each under its name; a second one of a name bears a number."""
    found: dict[str, Evaluator] = {}
    for i, (name, params) in enumerate(zip(component_names(evaluators), evaluators, strict=True)):
        with misfits("evaluators", i):
            found[name] = registry.build("evaluator", params)
    return found


def _regularizers(spec: Spec, registry: Registry, device: torch.device) -> dict[str, Regularizer]:
    found: dict[str, Regularizer] = {}
    for i, (name, params) in enumerate(
        zip(component_names(spec.regularizers), spec.regularizers, strict=True)
    ):
        seed_everything(spec.seed, "build", "regularizers", i)
        with misfits("regularizers", i):
            part = registry.build("regularizer", params)
        found[name] = part.to(device)
    return found


def component_names(components: Sequence[Params]) -> list[str]:
    """The name of each; a second one of a name bears a number."""
    return distinct([params.name for params in components])


def distinct(names: Sequence[str], separator: str = "_") -> list[str]:
    """The names; a second one of a name bears a number."""
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return [
        f"{name}{separator}{count + 1}" if count else name for name, count in zip(names, earlier, strict=True)
    ]


def make_component(spec: Spec, registry: Registry, device: torch.device, field: str, *context: Any) -> Any:
    """The component that a field of the spec names, seeded by that field alone."""
    seed_everything(spec.seed, "build", field)
    params = getattr(spec, field)
    with _located(field, params), misfits(field), few_layers():
        part = registry.build(KIND_OF_FIELD[field], params, *context)
    return part.to(device) if isinstance(part, nn.Module) else part


@contextmanager
def _located(field: str, params: Params) -> Iterator[None]:
    """Say `evaluate_on.path` where a component knows its keys as `data.path`."""
    kind = KIND_OF_FIELD[field]
    try:
        yield
    except Misfit as misfit:
        if field == kind:
            raise
        keys = "|".join(map(re.escape, type(params).model_fields))
        message = re.sub(rf"\b{kind}\.(?=(?:{keys})\b)", f"{field}.", misfit.message)
        loc = (field, *misfit.loc[1:]) if misfit.loc[0] == kind else misfit.loc
        raise Misfit(loc, message) from misfit


@contextmanager
def misfits(*loc: str | int) -> Iterator[None]:
    """Say of a constructor's ValueError or UserError which part of the spec it belongs to.

    A component that knows the key raises a Misfit itself.
    """
    try:
        yield
    except (Misfit, torch.OutOfMemoryError):
        raise
    except (OverflowError, RuntimeError) as error:  # of torch, about sizes that it cannot count
        raise Misfit(loc, f"cannot be built: {first_line(error)}") from error
    except (ValueError, UserError) as error:
        raise Misfit(loc, str(error)) from error
