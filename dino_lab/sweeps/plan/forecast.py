"""Estimate of a sweep's duration, from a few measured steps of each kind of trial."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dino_lab.errors import Loc, Misfit, SpecError, UserError
from dino_lab.protocols import SharedData
from dino_lab.registry import Registry, suggest
from dino_lab.runs.status import read_status
from dino_lab.spec.model import Spec
from dino_lab.sweeps.plan.plan import Plan, PlannedTrial
from dino_lab.training.build import build
from dino_lab.training.loop import NonFinite
from dino_lab.training.stacked.loop import train_each
from dino_lab.training.stacked.planning import form

PATIENCE = 15.0  # seconds after which no further kind of trial is measured
STEPS = 4  # of each kind; the first prepares much that the others reuse, and is not counted
_STEP_SECONDS = 2.0  # seconds after which no further step is measured

Stack = Sequence[PlannedTrial]


@dataclass(frozen=True)
class Forecast:
    """Seconds of each stack and of the whole sweep, and how many kinds of stacks were measured."""

    each: list[float]
    whole: float
    kinds: int


@dataclass(frozen=True)
class Measured:
    """Seconds of a whole stack, and the names of all numbers in its rows."""

    seconds: float
    numbers: tuple[str, ...]


def forecast(
    plan: Plan,
    stacks: Sequence[Stack],
    chosen: int,
    at_once: int,
    registry: Registry,
    device: torch.device,
    shared: Callable[[Spec], SharedData | None],
) -> Forecast:
    """The duration of `stacks`, of which `at_once` run side by side, and of `chosen` later trials.

    UserError if the rows of the first stack lack the sweep's metric. A kind that was not measured, because
    time ran out or because it fails, has the mean duration of the measured ones; its failure is reported by
    the trial itself.
    """
    began = time.monotonic()
    first = stacks[0] if stacks else [plan.trials[0]]
    kinds = [_kind(stack, registry) for stack in stacks]
    found = _measure_first(plan, first, registry, device, shared(first[0].spec))
    _check_metrics(plan, found)
    tried = {_kind(first, registry)}
    epoch = dict.fromkeys(tried, found.seconds / first[0].spec.train.epochs)  # seconds, by kind
    for stack, kind in zip(stacks, kinds, strict=True):
        if kind not in tried and time.monotonic() - began < PATIENCE:
            tried.add(kind)
            with contextlib.suppress(Exception):
                found = _measure_first(plan, stack, registry, device, shared(stack[0].spec))
                epoch[kind] = found.seconds / stack[0].spec.train.epochs
    usual = sum(epoch.values()) / len(epoch)
    each = [
        epoch.get(kind, usual) * stack[0].spec.train.epochs for stack, kind in zip(stacks, kinds, strict=True)
    ]
    each += [usual * plan.trials[0].spec.train.epochs] * chosen
    earlier = [usual * epochs for epochs in _earlier(stacks, plan.runs).values()]
    return Forecast(each, _whole([*earlier, *each], at_once), len(epoch))


def _earlier(stacks: Sequence[Stack], runs: Path) -> dict[str, int]:
    """Epochs of the stages that come before those of the trials and are not finished, by their hash."""
    found: dict[str, int] = {}
    waiting = [trial.spec.after for stack in stacks for trial in stack]
    while waiting:
        after = waiting.pop()
        if after is not None and after.epoch is None and read_status(runs / after.where).state != "finished":
            found[after.run] = int(after.spec["train"]["epochs"])
            waiting.append(after.before)
    return found


def _kind(stack: Stack, registry: Registry) -> tuple[int, str]:
    """What stacks with epochs of equal duration have in common."""
    spec = stack[0].spec
    train = spec.train.model_copy(update={"epochs": 1})
    return len(stack), form(spec.model_copy(update={"train": train}), registry)


def _measure_first(
    plan: Plan, stack: Stack, registry: Registry, device: torch.device, shared: SharedData | None
) -> Measured:
    try:
        specs = [trial.spec for trial in stack]
        resources = plan.sweep.resources
        found = measure(specs, registry, device, resources.cores, shared)
        # One process was measured: on the CPU with the threads of all, on one of the GPUs that will share it.
        return replace(found, seconds=found.seconds / max(1, int(resources.gpu)))
    except Misfit as misfit:
        raise UserError(f"{stack[0].label}: {misfit}") from misfit


def _check_metrics(plan: Plan, found: Measured) -> None:
    scheduler = plan.sweep.scheduler
    asked: list[tuple[Loc, str | None]] = [
        (("metric",), plan.sweep.metric),
        (("scheduler", "metric"), scheduler.metric if scheduler else None),
    ]
    evaluators = {name.partition(".")[0] for name in found.numbers}
    # A claim may be about arms that have other evaluators than the arm that was measured.
    asked += [
        (("expect", i, "metric"), claim.metric)
        for i, claim in enumerate(plan.sweep.expect)
        if claim.metric is not None and claim.metric.partition(".")[0] in evaluators
    ]
    for loc, metric in asked:
        if metric is not None and metric not in found.numbers:
            there = ", ".join(name for name in found.numbers if ("." in name) == ("." in metric))
            hint = suggest(metric, list(found.numbers))
            raise SpecError(plan.line(loc, f"no evaluator reports {metric!r}{hint} (there are: {there})"))


def _whole(each: Sequence[float], at_once: int) -> float:
    """Seconds until the last has ended, if each starts as soon as there is room."""
    ends = [0.0] * at_once
    for seconds in each:
        heapq.heappush(ends, heapq.heappop(ends) + seconds)
    return max(ends)


def measure(
    specs: Sequence[Spec],
    registry: Registry,
    device: torch.device,
    threads: int,
    shared: SharedData | None,
) -> Measured:
    """Build the specs of a stack, make a few steps, evaluate the first; nothing is written."""
    with _threads(threads, device):
        began = time.perf_counter()
        runs = [build(_with_every_row(spec), registry, device, shared) for spec in specs]
        run, epochs = runs[0], specs[0].train.epochs
        built = time.perf_counter() - began
        steps: list[float] = []
        numbers: dict[str, float] = {}
        steps_of_all = train_each(runs)
        while len(steps) < STEPS and sum(steps[1:]) < _STEP_SECONDS:
            now = time.perf_counter()
            rows = next(steps_of_all, None)
            if rows is None:
                break
            if isinstance(rows[0], NonFinite):
                raise UserError(f"{specs[0].name}: {rows[0]}")
            numbers |= rows[0].numbers
            steps.append(time.perf_counter() - now)
        now = time.perf_counter()
        scores = [name for scored in run.evaluate(run.due(0)) for name in scored.named_scores]
        evaluation = time.perf_counter() - now
    step = min(steps[1:] or steps)
    evaluations = 1 + sum(bool(run.due(epoch * run.steps_per_epoch)) for epoch in range(1, epochs + 1))
    seconds = built + run.total_steps * step + evaluations * evaluation * len(runs)
    names = dict.fromkeys(itertools.chain(numbers, scores, ["images_per_second"]))
    return Measured(seconds, tuple(names))


@contextlib.contextmanager
def _threads(count: int, device: torch.device) -> Iterator[None]:
    """Torch with so many threads; the device's memory is given back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _with_every_row(spec: Spec) -> Spec:
    """The spec with a row after each step."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"log_every": 1})})
