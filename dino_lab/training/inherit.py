"""A run that begins with the state of another: what of it is taken over, and what begins anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino_lab.building.components import make_component, make_method, misfits
from dino_lab.errors import UserError
from dino_lab.network import HEADS, Network
from dino_lab.protocols import Augment
from dino_lab.registry import Registry
from dino_lab.runs.checkpoint import Checkpoint, kept_epochs, load_checkpoint, read_checkpoint
from dino_lab.runs.files import KEPT
from dino_lab.runs.folder import RunFolder, folder_of
from dino_lab.runs.rows import REGULARIZER
from dino_lab.spec.file import parent_of
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run
from dino_lab.training.optimizer import make_optimizer
from dino_lab.weights.file import Content
from dino_lab.weights.fit import fit, load
from dino_lab.weights.layout import Of

State = Mapping[str, Any]
TOKENS = ("token_targets", "token_loss")


@dataclass(frozen=True)
class Inheritance:
    """The checkpoint that a run begins with."""

    folder: RunFolder  # of the run that left it
    spec: Spec  # of that run
    checkpoint: Checkpoint
    registry: Registry
    epoch: int | None  # after which a fork goes on; None of a stage

    @property
    def source(self) -> str:
        """What it is, in words."""
        when = "at its end" if self.epoch is None else f"after epoch {self.epoch}"
        return f"state of {self.folder.path} {when}"

    def first_step(self, run: Run) -> int:
        """Steps of the new run that are over: those of the epochs of a fork, none of a stage."""
        step = (self.epoch or 0) * run.steps_per_epoch
        if step > run.total_steps:
            raise UserError(f"after.epoch: {self.epoch}, of a run of {run.spec.train.epochs} epochs")
        return step


def inheritance(
    spec: Spec, registry: Registry, runs: Path, device: torch.device, at: Path | None = None
) -> Inheritance:
    """The checkpoint that `after` of a spec names, of the run in `runs`, or in the folder `at`.

    A UserError where it is not there.
    """
    parent = parent_of(spec, registry)
    assert spec.after is not None
    assert parent is not None
    folder = RunFolder(at) if at is not None else folder_of(runs, parent)
    epoch = spec.after.epoch
    if epoch is None:
        found = load_checkpoint(folder.path, folder.hash, device)
    else:
        found = checkpoint_at(folder, epoch, device)
    if found is None:
        raise UserError(f"{folder.path}: the run that this one comes after has no checkpoint here")
    return Inheritance(folder, parent, found, registry, epoch)


def checkpoint_at(folder: RunFolder, epoch: int, device: torch.device) -> Checkpoint:
    """The checkpoint of a run after an epoch; a UserError where it kept none."""
    kept = kept_epochs(folder.path)
    if epoch in kept:
        return read_checkpoint(folder.path / KEPT.format(epoch), folder.hash, device)
    ended = {row["step"]: int(row["epoch"]) for row in folder.rows() if row["epoch"] == int(row["epoch"])}
    last = load_checkpoint(folder.path, folder.hash, device)
    if last is not None and ended.get(last.step) == epoch:
        return last
    there = [*kept, *({ended[last.step]} - {0, *kept} if last is not None and last.step in ended else ())]
    raise UserError(
        f"{folder.path}: has no checkpoint of epoch {epoch} (there are: "
        f"{', '.join(map(str, there)) or 'none'}); train.keep: [{epoch}] keeps one while a run is trained"
    )


def take_over(run: Run, given: Inheritance) -> tuple[str, ...]:
    """Put the state of a checkpoint into a new run, part by part; lines that say what was done.

    Networks are taken over where shapes agree, position embeddings of a backbone interpolated; a head of
    other shapes begins anew. Targets, loss, regularizers and teacher keep their state under the same name and
    shapes; a new teacher with a network begins as a copy of the student. The optimizer keeps what it has
    noted of each parameter that is taken over. A Misfit where the backbone is another.
    """
    state = given.checkpoint.state
    lines = [given.source, *_student(run, state, given), *_teacher(run, state, given)]
    for name, part, same in _parts(run, given.spec):
        lines += _part(name, part, state.get(name, {}) if same else {})
    return (*lines, *_optimizer(run, state, given))


def _parts(run: Run, parent: Spec) -> Iterator[tuple[str, nn.Module, bool]]:
    """Parts with a state, their name in a checkpoint, and whether the parent has a component of that name."""
    for name in ("targets", "loss"):
        same = getattr(run.spec, name).name == getattr(parent, name).name
        yield name, cast(nn.Module, getattr(run, name)), same
    if (tokens := run.token_objective) is not None:
        names = [[getattr(getattr(spec, key), "name", None) for key in TOKENS] for spec in (run.spec, parent)]
        yield "token_objective", tokens, names[0] == names[1]
    for name, part in run.regularizers.items():
        yield name, cast(nn.Module, part), True


def _part(name: str, part: nn.Module, state: State) -> list[str]:
    wanted = part.state_dict()
    if not wanted and not state:
        return []
    if not _same_shapes(wanted, state):
        return [f"{name.removeprefix(REGULARIZER)}: without a state from before"]
    part.load_state_dict(dict(state))
    return []


def _student(run: Run, state: State, given: Inheritance) -> list[str]:
    student = run.student
    lines = _backbone(student, state, given, "student")
    for name in HEADS:
        part = getattr(student, name)
        if part is not None:
            lines += _part(name, part, _below(state["student"], name))
    return lines


def _teacher(run: Run, state: State, given: Inheritance) -> list[str]:
    teacher, network = cast(nn.Module, run.teacher), run.teacher.network
    whole, own = state["teacher"], teacher.state_dict()
    if network is None:  # what it teaches with, if anything, is made of the spec
        if whole and own and not _same_spec(run.spec, given.spec):
            return ["teacher: without a state from before"]
        teacher.load_state_dict(dict(whole if own else {}))
        return []
    if run.spec.teacher.name != given.spec.teacher.name:
        of_student = run.student.state_dict()
        _copy(teacher, {name: of_student[name] for name in network.state_dict()})
        return ["teacher: begins as a copy of the student"]
    if _same_shapes(own, whole):
        of_data = {key: value for key, value in own.items() if _is_statistic(teacher, key)}
        teacher.load_state_dict({**whole, **of_data})
        return []
    lines = _backbone(network, state, given, "teacher")
    lines += _part("teacher's head", network.head, _below(whole, "network.head"))
    if network.token_head is not None:
        lines += _part("teacher's token_head", network.token_head, _below(whole, "network.token_head"))
    _copy(teacher, network.state_dict())
    return lines


def _same_spec(one: Spec, other: Spec) -> bool:
    """Whether two specs make the same first weights and the same teacher."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("seed", "backbone", "init", *HEADS, "teacher")
    )


def _copy(teacher: nn.Module, state: State) -> None:
    """Give a teacher's network, and the copies that wait to be it, these weights."""
    for network in (module for module in teacher.modules() if isinstance(module, Network)):
        network.load_state_dict(dict(state))


def _is_statistic(teacher: nn.Module, key: str) -> bool:
    """Whether a name is that of the images' mean or deviation, which are those of the new run's data."""
    module, _, name = key.rpartition(".")
    return name in ("mean", "std") and isinstance(teacher.get_submodule(module), Network)


def _backbone(network: Network, state: State, given: Inheritance, of: Of) -> list[str]:
    """Put the backbone of a checkpoint's network into another, and say what had to be changed for it."""
    whole = _below(state[of], "network" if of == "teacher" else "") or state[of]
    found = _below(whole, "backbone")
    if _same_shapes(network.backbone.state_dict(), found):
        network.backbone.load_state_dict(dict(found))
        return []
    content = Content(str(given.folder.path), {f"{of}.backbone.{key}": v for key, v in found.items()})
    with misfits("backbone"):
        fitted = fit(content, network.backbone, of)
    load(network.backbone, fitted.state)
    return [f"{of}: {line}" for line in fitted.lines]


def _optimizer(run: Run, whole: State, given: Inheritance) -> list[str]:
    """What the optimizer has noted of each parameter, moved to the parameter's place of now."""
    state = whole["optimizer"]
    if run.spec.optim.name != given.spec.optim.name or "predictor" not in state["param_groups"][0]:
        return ["optimizer: without a state from before"]
    shapes = _optimizer_of(given, run)
    places = {name: i for i, name in enumerate(shapes)}
    anew = tuple(f"{part}." for part in HEADS if not _is_taken_over(run, whole, part))
    now = run.optimizer.state_dict()
    names = {id(parameter): name for name, parameter in run.student.named_parameters()}
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    moved, without = {}, 0
    for i, parameter in enumerate(parameters):
        name = names[id(parameter)]
        if name.startswith(anew) or shapes.get(name) != parameter.shape:
            without += 1
        elif (noted := state["state"].get(places[name])) is not None:
            moved[i] = noted
    run.optimizer.load_state_dict({"state": moved, "param_groups": now["param_groups"]})
    if not without:
        return []
    return [f"optimizer: {without} of {len(parameters)} parameters without a state from before"]


def _is_taken_over(run: Run, state: State, part: str) -> bool:
    """Whether a part of the student has the shapes of the one before."""
    module = getattr(run.student, part)
    return module is not None and _same_shapes(module.state_dict(), _below(state["student"], part))


def _optimizer_of(given: Inheritance, run: Run) -> dict[str, torch.Size]:
    """Names and shapes of the parameters of the parent's optimizer, in its order."""
    spec, cpu, meta = given.spec, torch.device("cpu"), torch.device("meta")
    augment: Augment = make_component(spec, given.registry, cpu, "augment")
    with meta:
        student = make_method(
            *(spec, given.registry, meta, augment),
            channels=run.student.mean.numel(),
            mean=(0.0,),
            std=(1.0,),
            first_weights=False,
        ).student
        optimizer = make_optimizer(
            spec.optim, student, freeze_backbone=spec.init.freeze if spec.init is not None else 0.0
        )
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    return {names[id(p)]: p.shape for group in optimizer.param_groups for p in group["params"]}


def _below(state: State, prefix: str) -> dict[str, Any]:
    """What stands below a dotted name, without it."""
    start = f"{prefix}." if prefix else ""
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def _same_shapes(wanted: State, found: State) -> bool:
    """Whether two states have the same names and shapes."""
    return wanted.keys() == found.keys() and all(
        _shape(value) == _shape(found[key]) for key, value in wanted.items()
    )


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
