"""Trials that are trained together in one process."""

from __future__ import annotations

from collections.abc import Sequence

from dino_lab.registry import Registry
from dino_lab.sweeps.plan.plan import PlannedTrial
from dino_lab.training.stacked.planning import form, reason_to_be_alone


def stacks(
    trials: Sequence[PlannedTrial], most: int, registry: Registry
) -> tuple[list[list[PlannedTrial]], dict[str, int]]:
    """Trials with equal shapes in stacks of at most `most`; and how many train alone, by reason.

    The order of the plan is kept, in which trials with equal seeds, and so equal crops, follow each other.
    """
    if most == 1:
        return [[trial] for trial in trials], {}
    alike: dict[str, list[PlannedTrial]] = {}
    for trial in trials:
        alike.setdefault(form(trial.spec, registry), []).append(trial)
    found: list[list[PlannedTrial]] = []
    alone: dict[str, int] = {}
    for group in alike.values():
        single = "no other has networks and crops of the same shape"
        reason = single if len(group) == 1 else reason_to_be_alone(group[0].spec, registry)
        size = most if reason is None else 1
        if reason is not None:
            alone[reason] = alone.get(reason, 0) + len(group)
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found, alone
