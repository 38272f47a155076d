"""How long a sweep will take, by a few steps of each kind of trial in it."""

from __future__ import annotations

import contextlib
import heapq
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dino_lab.errors import Misfit, SpecError, UserError
from dino_lab.protocols import SharedData
from dino_lab.registry import Registry, suggest
from dino_lab.spec.model import Spec
from dino_lab.sweeps.plan.measure import Measured, measure
from dino_lab.sweeps.plan.plan import Plan, Trial
from dino_lab.training.stacked.planning import form

PATIENCE = 15.0  # seconds after which no further kind of trial is measured

Pack = Sequence[Trial]


@dataclass(frozen=True)
class Forecast:
    """Seconds of each pack, and of the whole sweep; by how many measured kinds of packs."""

    each: list[float]
    whole: float
    kinds: int


def forecast(
    plan: Plan,
    packs: Sequence[Pack],
    chosen: int,
    at_once: int,
    registry: Registry,
    device: torch.device,
    shared: Callable[[Spec], SharedData | None],
) -> Forecast:
    """Measure packs, of which `at_once` run side by side, and then `chosen` trials more.

    A UserError if the rows of the first will not have the sweep's metric. A kind that was not measured, for
    want of time or because it fails, which is for its trial to say, takes the mean of the others.
    """
    began = time.monotonic()
    first, kinds = packs[0] if packs else [plan.trials[0]], [_kind(pack, registry) for pack in packs]
    found = _measure(plan, first, registry, device, shared(first[0].spec))
    _check_metrics(plan, found)
    tried = {_kind(first, registry)}
    known = dict.fromkeys(tried, found.seconds / first[0].spec.train.epochs)  # seconds of an epoch
    for pack, kind in zip(packs, kinds, strict=True):
        if kind not in tried and time.monotonic() - began < PATIENCE:
            tried.add(kind)
            with contextlib.suppress(Exception):
                found = _measure(plan, pack, registry, device, shared(pack[0].spec))
                known[kind] = found.seconds / pack[0].spec.train.epochs
    usual = sum(known.values()) / len(known)
    each = [
        known.get(kind, usual) * pack[0].spec.train.epochs for pack, kind in zip(packs, kinds, strict=True)
    ]
    each += [usual * plan.trials[0].spec.train.epochs] * chosen
    return Forecast(each, _whole(each, at_once), len(known))


def _kind(pack: Pack, registry: Registry) -> tuple[int, str]:
    """What packs of one duration have in common but for their epochs."""
    spec = pack[0].spec
    train = spec.train.model_copy(update={"epochs": 1})
    return len(pack), form(spec.model_copy(update={"train": train}), registry)


def _measure(
    plan: Plan, pack: Pack, registry: Registry, device: torch.device, shared: SharedData | None
) -> Measured:
    try:
        specs = [trial.spec for trial in pack]
        return measure(specs, registry, device, plan.sweep.resources.cpu, shared)
    except Misfit as misfit:
        raise UserError(f"{pack[0].label}: {misfit}") from misfit


def _check_metrics(plan: Plan, found: Measured) -> None:
    scheduler = plan.sweep.scheduler
    for loc, metric in (
        (("metric",), plan.sweep.metric),
        (("scheduler", "metric"), scheduler.metric if scheduler else None),
    ):
        if metric is not None and metric not in found.numbers:
            there = ", ".join(name for name in found.numbers if ("." in name) == ("." in metric))
            hint = suggest(metric, list(found.numbers))
            raise SpecError(plan.line(loc, f"no evaluator reports {metric!r}{hint} (there are: {there})"))


def _whole(each: Sequence[float], at_once: int) -> float:
    """Until the last has ended, if each starts as soon as there is room."""
    ends = [0.0] * at_once
    for seconds in each:
        heapq.heappush(ends, heapq.heappop(ends) + seconds)
    return max(ends)
