"""Whether the parts of a spec go together, before any data is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dino_lab.building.components import Method, make_method, make_part, misfits
from dino_lab.building.size import check_length, check_memory
from dino_lab.errors import Misfit, first_line
from dino_lab.network import Network
from dino_lab.protocols import Augment, Evaluator, Loss
from dino_lab.registry import Registry
from dino_lab.registry.kinds import KIND_OF_FIELD, LISTS
from dino_lab.spec.model import Spec
from dino_lab.types import Views


def check(spec: Spec, registry: Registry) -> list[str]:
    """Build every part but the data without memory, and see whether they go together; a Misfit says where.

    Gives what is known of them, in lines to print.
    """
    check_length(spec)
    augment: Augment = make_part(spec, registry, torch.device("cpu"), "augment")
    with torch.device("meta"):
        method = make_method(
            spec, registry, torch.device("meta"), augment, channels=3, mean=(0.0,), std=(1.0,)
        )
    check_memory(spec, method)
    _check_pairs(spec, augment, method.loss)
    for _, pixels in augment.groups:
        _check_size(method.student.backbone, pixels)
    _check_heads(spec, method.student)
    _check_teacher(method)
    parts = {field: getattr(spec, field) for field in KIND_OF_FIELD if field not in LISTS}
    names = {field: part.name for field, part in parts.items() if part is not None}
    its = [params.name for params in spec.evaluators]
    check_needs(names, registry, list(zip(its, method.evaluators.values(), strict=True)))
    if spec.train.gradient_checkpointing:
        checkpoint_gradients(method.student)
    if spec.train.accumulate > spec.train.batch_size:
        raise Misfit(("train", "accumulate"), f"a batch of {spec.train.batch_size} has no so many parts")
    return _facts(method)


def _check_pairs(spec: Spec, augment: Augment, loss: Loss) -> None:
    pairs, groups = augment.pairs, augment.groups
    shape = (sum(views for views, _ in groups), groups[0][0])
    if tuple(pairs.shape) != shape:
        raise Misfit(("augment",), f"pairs must be {shape} for its crops, not {tuple(pairs.shape)}")
    if not bool((pairs > 0).any()):
        raise Misfit(("augment",), "no two views are to be pulled together")
    if bool((pairs < 0).any()) and not loss.negatives:
        raise Misfit(
            ("loss", "name"),
            f"augment {spec.augment.name!r} gives pairs to push apart, and loss {spec.loss.name!r} knows no "
            "negatives",
        )
    if hasattr(loss, "check_pairs"):
        with misfits("loss"):
            loss.check_pairs(pairs)


def _check_size(backbone: Any, pixels: int) -> None:
    try:
        if hasattr(backbone, "check_size"):
            backbone.check_size(pixels)
        backbone(torch.zeros(2, 3, pixels, pixels, device="meta"))
    except Exception as error:
        message = f"refuses the crops of {pixels} x {pixels} px: {first_line(error)}"
        raise Misfit(("backbone",), message) from error


def _check_heads(spec: Spec, student: Network) -> None:
    if student.predictor is not None and student.predictor.dim != student.head.dim:
        raise Misfit(
            ("predictor", "dim"),
            f"a predictor gives back what it gets: {student.head.dim} outputs, not {student.predictor.dim}",
        )
    if spec.optim.freeze_last_layer and not hasattr(student.head, "last_layer"):
        raise Misfit(
            ("optim", "freeze_last_layer"), f"head {spec.head.name!r} names no last layer to hold still"
        )


def _check_teacher(method: Method) -> None:
    """Two images without memory, through student and teacher: both must give as many outputs."""
    views = Views(
        [torch.zeros(v, 2, 3, pixels, pixels, device="meta") for v, pixels in method.augment.groups],
        method.augment.pairs,
    )
    labels = torch.zeros(2, dtype=torch.int64, device="meta")
    with torch.no_grad():
        student = method.student(views.crops)
        try:
            teacher = method.teacher.forward(views, student, labels)
        except Exception as error:
            raise Misfit(("teacher",), f"refuses the crops: {first_line(error)}") from error
    wanted, found = (len(views.crops[0]), *student.z.shape[1:]), tuple(teacher.shape)
    if found != wanted:
        raise Misfit(("teacher",), f"gives {found} numbers (views, images, outputs), not {wanted}")


def checkpoint_gradients(network: Network) -> None:
    """Turn gradient checkpointing on in the backbone; a Misfit where it has none."""
    backbone: Any = network.backbone
    with misfits("train", "gradient_checkpointing"):
        if not hasattr(backbone, "checkpoint_gradients"):
            raise ValueError(f"the backbone, {type(backbone).__name__}, cannot do that")
        backbone.checkpoint_gradients()


def check_needs(
    names: dict[str, str], registry: Registry, evaluators: Sequence[tuple[str, Evaluator]]
) -> None:
    """A Misfit where an evaluator, with its name, needs what the component that a field names lacks."""
    for i, (its, evaluator) in enumerate(evaluators):
        for need in getattr(evaluator, "needs", ()):
            field, _, capability = need.partition(".")
            asks, loc = f"{its!r} asks for {capability}", ("evaluators", i, "name")
            if field not in names:
                raise Misfit(loc, f"{asks}, but there is no {field}")
            if not hasattr(registry.find(KIND_OF_FIELD[field], names[field]).cls, capability):
                raise Misfit(loc, f"{asks}, which {field} {names[field]!r} does not give")


def _facts(method: Method) -> list[str]:
    student, groups = method.student, method.augment.groups
    count = sum(p.numel() for p in student.parameters())
    backbone = sum(p.numel() for p in student.backbone.parameters())
    crops = " + ".join(f"{views} x {pixels} px" for views, pixels in groups)
    return [
        f"student: {count / 1e6:.2f} M parameters, {backbone / 1e6:.2f} M of them in the backbone",
        f"crops of each image: {crops}; the teacher sees the first {groups[0][0]}",
        f"features: {student.backbone.dim}; outputs: {student.head.dim}",
        *(f"evaluator: {evaluator.protocol}" for evaluator in method.evaluators.values()),
    ]
