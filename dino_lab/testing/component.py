"""The conformance kit: what built-in components and those of plugins are tested with alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dino_lab.registry import ComponentError, Registry
from dino_lab.registry import registry as default_registry
from dino_lab.testing.evaluator import EvaluatorTrial
from dino_lab.testing.images import AugmentTrial, DataTrial
from dino_lab.testing.networks import BackboneTrial, HeadTrial
from dino_lab.testing.objectives import LossTrial, RegularizerTrial, TargetsTrial
from dino_lab.testing.parameters import check_edges, check_refusals, check_schema
from dino_lab.testing.resume import check_run
from dino_lab.testing.teacher import TeacherTrial
from dino_lab.testing.tested_component import Failed, TestedComponent
from dino_lab.testing.trial import Trial

TRIALS: dict[str, type[Trial]] = {
    "data": DataTrial,
    "augment": AugmentTrial,
    "backbone": BackboneTrial,
    "head": HeadTrial,
    "teacher": TeacherTrial,
    "targets": TargetsTrial,
    "loss": LossTrial,
    "regularizer": RegularizerTrial,
    "evaluator": EvaluatorTrial,
}


def check_component(
    kind: str,
    name: str,
    *,
    params: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    registry: Registry = default_registry,
) -> None:
    """Raise an AssertionError that says in one sentence what is wrong, and what would be right.

    Asked for are: the contract of its kind; shapes, also of odd sizes; finite float32 numbers, and finite
    ones in bfloat16; any device; the same numbers from the same seed; a state_dict that holds all state; no
    gradient where none belongs; docstring, types and JSON schema; one clear line for wrong parameters; and a
    run of two steps that ends the same when it is stopped in between.

    `params` are parameters that it cannot do without, or that make it small enough to be tried quickly.
    `settings` change the method that the run is made of, as `--set` does: crops that a backbone takes, a loss
    that understands what an augmentation gives.
    """
    if kind not in TRIALS:
        raise Failed(f"no kind is called {kind!r} (there are: {', '.join(TRIALS)})")
    try:
        entry = registry.find(kind, name)
    except ComponentError as error:
        raise Failed(str(error)) from error
    subject = TestedComponent(entry, dict(params or {}), tuple(settings), registry)
    check_schema(subject)
    trial = TRIALS[kind](subject)
    trial.check()
    check_refusals(subject)
    check_edges(trial)
    check_run(subject)
