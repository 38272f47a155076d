"""A finished run made longer: it goes on where a run of that length would be the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel

from dino_lab.errors import UserError
from dino_lab.registry import Registry
from dino_lab.runs.checkpoint import Checkpoint, kept_epochs, load_checkpoint, save_checkpoint
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.schedule import Progress, Schedule
from dino_lab.spec.identity import identity_of
from dino_lab.spec.model import Spec
from dino_lab.training.inherit import checkpoint_at

CPU = torch.device("cpu")
_OverTime = Callable[[Progress], float]


class OtherPast(UserError):
    """A longer run would have been another one from an early step on."""


@dataclass(frozen=True)
class Difference:
    """The first step of a run at which a value would be another in a longer one."""

    key: str
    step: int
    here: float
    there: float


def longer(spec: Spec, epochs: int) -> Spec:
    """The spec of a run of so many epochs more."""
    train = spec.train.model_copy(update={"epochs": spec.train.epochs + epochs})
    return spec.model_copy(update={"train": train})


def extend(folder: RunFolder, epochs: int, runs: Path, registry: Registry) -> tuple[Spec, int]:
    """Give a run of so many epochs more the past of this one; its spec, and the step from which it goes on.

    That is the last checkpoint, `last.pt` or one of a kept epoch, before which every schedule is the same in
    the longer run, so that it ends with the weights, bit for bit (on a CPU), of one that was never shorter.
    A longer run that has begun already goes on where it is. An OtherPast where there is none.
    """
    spec = folder.spec(registry)
    new, rows = longer(spec, epochs), folder.rows()
    target = folder_of(runs, new)
    begun = load_checkpoint(target.path, target.hash, CPU, mapped=True) if target.has_checkpoint else None
    if begun is not None:
        return new, begun.step
    per_epoch = _steps_per_epoch(folder, rows)
    last = load_checkpoint(folder.path, folder.hash, CPU)
    ends = [last.step] if last is not None else []
    ends += [epoch * per_epoch for epoch in kept_epochs(folder.path)]
    if not ends:
        raise UserError(f"{folder.path}: there is no checkpoint yet (last.pt)")
    found = differences(spec, new, max(ends), per_epoch)
    same_until = min((one.step for one in found), default=math.inf)
    usable = [step for step in ends if 0 < step <= same_until]
    if not usable:
        raise OtherPast(_in_words(folder, new, found, int(same_until) // per_epoch))
    step = max(usable)
    is_last = last is not None and last.step == step
    state = last if is_last else checkpoint_at(folder, step // per_epoch, CPU)
    assert state is not None
    with target.locked():
        _give(target, new, state, folder)
    return new, step


def differences(old: Spec, new: Spec, steps: int, per_epoch: int) -> list[Difference]:
    """Where the first steps of two specs, which differ in their epochs alone, are not the same, by key."""
    found = []
    for key, value in _values_over_time(old):
        for step in range(steps):
            here, there = (value(Progress(step, per_epoch, spec.train.epochs)) for spec in (old, new))
            if here != there:
                found.append(Difference(key, step, here, there))
                break
    return found


def _values_over_time(spec: Spec) -> Iterator[tuple[str, _OverTime]]:
    for field in type(spec).model_fields:
        if field not in ("evaluators", "after"):
            yield from _schedules(field, getattr(spec, field))
    yield "optim.freeze_last_layer", lambda progress: float(progress < spec.optim.freeze_last_layer)
    if (init := spec.init) is not None:
        yield "init.freeze", lambda progress: float(progress < init.freeze)


def _schedules(key: str, value: object) -> Iterator[tuple[str, Schedule]]:
    if isinstance(value, Schedule):
        if value.start != value.end or value.warmup:
            yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _schedules(f"{key}.{name}", getattr(value, name))
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _schedules(f"{key}.{i}", item)


def _steps_per_epoch(folder: RunFolder, rows: Sequence[dict[str, float]]) -> int:
    last = rows[-1] if rows else {"step": 0, "epoch": 0}
    if not last["epoch"]:
        raise UserError(f"{folder.path}: no step was made yet, so there is nothing to go on from")
    return round(last["step"] / last["epoch"])


def _in_words(folder: RunFolder, new: Spec, found: Sequence[Difference], epoch: int) -> str:
    first = min(found, key=lambda one: one.step)
    others = [one.key for one in found if one is not first]
    more = f" (so do {', '.join(others)})" if others else ""
    keep = (
        f"; it is the same for {epoch} epochs, of which train.keep: [{epoch}] keeps the end" if epoch else ""
    )
    return (
        f"{folder.path}: in a run of {new.train.epochs} epochs {first.key} differs from step {first.step} "
        f"on, {first.here:.6g} here and {first.there:.6g} there{more}{keep}; --as-stage trains the new "
        "epochs as a stage of their own"
    )


def _give(target: RunFolder, spec: Spec, state: Checkpoint, folder: RunFolder) -> None:
    """Put a checkpoint, its rows and the record of the data into the folder of a longer run."""
    target.write_rows([row for row in folder.rows() if row["step"] <= state.step])
    target.write_spec(spec)
    target.write_identity(identity_of(spec), folder.recorded_data() or {})
    save_checkpoint(target.path, target.hash, state.step, state.seconds, state.state)
