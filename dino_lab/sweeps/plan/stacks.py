"""Trials that are trained together."""

from __future__ import annotations

from collections.abc import Sequence

from dino_lab.registry import Registry
from dino_lab.sweeps.plan.plan import Trial
from dino_lab.training.stacked.planning import form, reason_to_be_alone


def packs(trials: Sequence[Trial], most: int, registry: Registry) -> tuple[list[list[Trial]], dict[str, int]]:
    """Trials of one form in packs of at most `most`; how many stay alone, by the reason.

    In the order of the plan, in which those with the same seed, and so the same crops, follow each other.
    """
    if most == 1:
        return [[trial] for trial in trials], {}
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        alike.setdefault(form(trial.spec, registry), []).append(trial)
    found: list[list[Trial]] = []
    alone: dict[str, int] = {}
    for group in alike.values():
        lonely = "no other has networks and crops of the same shape"
        reason = lonely if len(group) == 1 else reason_to_be_alone(group[0].spec, registry)
        size = most if reason is None else 1
        if reason is not None:
            alone[reason] = alone.get(reason, 0) + len(group)
        found += [group[i : i + size] for i in range(0, len(group), size)]
    return found, alone
