"""The `init` of a spec: first weights of networks, taken from a file, a run or a model of timm."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from dino_lab.errors import Misfit, UserError, first_line
from dino_lab.network import HEADS, Network
from dino_lab.protocols import Targets, Teacher
from dino_lab.spec.model import Init
from dino_lab.weights.file import TIMM, Content, digest, read_weights
from dino_lab.weights.fit import Fitted, fit, fit_named, load
from dino_lab.weights.layout import Of


def content_of(init: Init) -> Content:
    """What `init` names, in memory only as far as it is used; a UserError where it cannot be read."""
    if init.path.startswith(TIMM):
        return _of_timm(init.path)
    path = Path(init.path).expanduser()
    return _read(path, digest(path))


@lru_cache(maxsize=1)
def _read(path: Path, _digest: str) -> Content:
    return read_weights(path)


def _of_timm(name: str) -> Content:
    """The published weights of a model of timm; without values where there is no memory to hold them."""
    import timm

    model, on_meta = name.removeprefix(TIMM), torch.get_default_device().type == "meta"
    if not timm.is_model(model) or not timm.is_model_pretrained(model):
        raise UserError(f"timm has no pretrained weights for {model!r}")
    try:
        return Content(name, timm.create_model(model, pretrained=not on_meta, num_classes=0).state_dict())
    except Exception as error:
        raise UserError(f"the weights of {name} could not be had ({first_line(error)})") from error


def give_student(init: Init, student: Network) -> tuple[str, ...]:
    """Copy the weights into a new student, before a teacher is made from it; lines that say what was done."""
    content = content_of(init)
    fitted = fit(content, student.backbone, None if init.what == "backbone" else "student")
    load(student.backbone, fitted.state)
    if init.head == "kept":
        _keep(content, student, "student")
    warning = (content.warning,) if content.warning else ()
    return (f"first weights: {init.what} of {init.path}", *warning, *fitted.lines)


def give_rest(init: Init, teacher: Teacher, targets: Targets) -> None:
    """With `what: all`: the teacher's network gets the file's own, and with its head targets their state."""
    if init.what != "all":
        return
    content = content_of(init)
    if (network := teacher.network) is not None:
        load(network.backbone, _of_teacher(content, network).state)
        if init.head == "kept":
            _keep(content, network, "teacher")
    if init.head == "kept" and isinstance(targets, nn.Module) and (wanted := targets.state_dict()):
        load(targets, _named(content, wanted, "targets", None))


def _of_teacher(content: Content, network: Network) -> Fitted:
    fitted = fit(content, network.backbone, "teacher")
    if fitted.prefix == fit(content, network.backbone, "student").prefix:
        raise Misfit(("init", "what"), f"{content.source} has one network, not student and teacher")
    return fitted


def _keep(content: Content, network: Network, of: Of) -> None:
    """Copy the weights of heads, which are those of the same part of the same network."""
    for name in HEADS:
        part = getattr(network, name)
        if part is not None and (wanted := part.state_dict()):
            load(part, _named(content, wanted, name, of))


def _named(
    content: Content, wanted: dict[str, torch.Tensor], part: str, of: Of | None
) -> dict[str, torch.Tensor]:
    """The state of a part by its names in a run's checkpoint; a Misfit where it is of other shapes."""
    try:
        found = fit_named(content, {f"{part}.{name}": value for name, value in wanted.items()}, of)
    except UserError as error:
        raise Misfit(
            ("init", "head"), f"kept: the {part} here is another ({error}); take head: new"
        ) from error
    return {name.removeprefix(f"{part}."): value for name, value in found.items()}


def channels_of(content: Content) -> int:
    """Channels of the images that weights are for: the first convolution says it."""
    return next((int(value.shape[1]) for value in content.tensors.values() if value.ndim == 4), 3)
