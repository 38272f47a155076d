"""Whether the parts of a spec go together, before any data is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dino_lab import collectives
from dino_lab.building.components import Method, make_component, make_evaluators, make_method, misfits
from dino_lab.building.first_weights import channels_of, content_of
from dino_lab.building.parameters import rate_factors
from dino_lab.building.size import check_crops, check_length, check_memory
from dino_lab.errors import Misfit, first_line
from dino_lab.evaluation.outputs import REPRESENTATIONS
from dino_lab.network import Network
from dino_lab.protocols import (
    Augment,
    CheckpointsGradients,
    ChecksPairs,
    ChecksSize,
    Evaluator,
    GivesTokenTargets,
    HasLastLayer,
    Loss,
    ability,
    members,
    needs_of,
    representations_of,
)
from dino_lab.registry import Registry
from dino_lab.registry.kinds import KIND_OF_FIELD, LISTS
from dino_lab.spec.model import Spec, Train
from dino_lab.types import Views

MOST_NORMS = 4  # layers of batch norm in a backbone that sees a batch in parts


def check(spec: Spec, registry: Registry, *, first_weights: bool = True) -> list[str]:
    """Build every part but the data without memory, and see whether they go together; a Misfit says where.

    Gives what is known of them, in lines to print. Without `first_weights` those of `init` are not looked at.
    """
    check_length(spec)
    augment: Augment = make_component(spec, registry, torch.device("cpu"), "augment")
    check_crops(augment)
    with torch.device("meta"):
        method = _without_memory(spec, registry, augment, channels=3, first_weights=False)
        said = _check_init(spec, registry, augment) if first_weights else ()
    _check_parameters(method)
    check_memory(spec, method)
    _check_pairs(spec, augment, method.loss)
    for _, pixels in augment.groups:
        _check_size(method.student.backbone, pixels)
    _check_heads(spec, method.student)
    _check_tokens(spec, method)
    _check_teacher(method)
    parts = {field: getattr(spec, field) for field in KIND_OF_FIELD if field not in LISTS}
    names = {field: part.name for field, part in parts.items() if part is not None}
    names["data"] = spec.evaluation_data.name
    evaluators = list(make_evaluators(spec.evaluators, registry).values())
    its = [params.name for params in spec.evaluators]
    check_needs(names, registry, list(zip(its, evaluators, strict=True)))
    if spec.train.gradient_checkpointing:
        checkpoint_gradients(method.student)
    _check_parts(spec, method)
    _check_one_image(spec.train, method)
    return [*_facts(method, evaluators), *said]


def _without_memory(
    spec: Spec, registry: Registry, augment: Augment, *, channels: int, first_weights: bool
) -> Method:
    return make_method(
        *(spec, registry, torch.device("meta"), augment),
        channels=channels,
        mean=(0.0,),
        std=(1.0,),
        first_weights=first_weights,
    )


def _check_init(spec: Spec, registry: Registry, augment: Augment) -> tuple[str, ...]:
    """A Misfit where the first weights cannot be read, or do not fit; else what is done with them."""
    if spec.init is None:
        return ()
    if spec.init.below_start == "stop" and not spec.evaluators:
        raise Misfit(
            ("init", "below_start"), "stop needs an evaluator, whose score is followed; there is none"
        )
    with misfits("init", "from"):
        channels = channels_of(content_of(spec.init))
    method = _without_memory(spec, registry, augment, channels=channels, first_weights=True)
    return method.said


def _check_parameters(method: Method) -> None:
    parts: dict[tuple[str | int, ...], object] = {
        ("augment",): method.augment,
        ("teacher",): method.teacher,
        ("targets",): method.targets,
        ("loss",): method.loss,
    }
    if method.token_objective is not None:
        parts |= {(f"token_{name}",): part for name, part in method.token_objective.named_children()}
    parts |= {("regularizers", i): part for i, part in enumerate(method.regularizers.values())}
    for loc, part in parts.items():
        if (fault := untrained(part, method.student)) is not None:
            raise Misfit(loc, fault)


def untrained(part: object, student: nn.Module | None) -> str | None:
    """Why a part would not learn what it has to: the optimizer gets the student's parameters alone."""
    learned = {id(parameter) for parameter in student.parameters()} if student is not None else set()
    named = part.named_parameters() if isinstance(part, nn.Module) else ()
    lost = [name for name, parameter in named if parameter.requires_grad and id(parameter) not in learned]
    if not lost:
        return None
    return (
        f"its parameter {lost[0]!r} would never be trained: the optimizer gets those of backbone, heads and "
        "predictor; what is learned belongs there, what is constant is a buffer (register_buffer) or frozen "
        "(requires_grad_(False))"
    )


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
    if (checks := ability(loss, ChecksPairs)) is not None:
        with misfits("loss"):
            checks.check_pairs(pairs)


def _check_size(backbone: Any, pixels: int) -> None:
    try:
        if (checks := ability(backbone, ChecksSize)) is not None:
            checks.check_size(pixels)
        with torch.no_grad():
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
    if spec.optim.freeze_last_layer and ability(student.head, HasLastLayer) is None:
        raise Misfit(("optim", "freeze_last_layer"), f"head {spec.head.name!r} names no last layer to freeze")
    rate_factors(spec.optim, student)
    if spec.optim.constant_predictor_lr and student.predictor is None:
        raise Misfit(("optim", "constant_predictor_lr"), "there is no predictor, so nothing keeps its rate")


def _check_teacher(method: Method) -> None:
    """Two images without memory, through student and teacher: both must give as many outputs."""
    views, labels = _images(method.augment, 2)
    with torch.no_grad():
        student = method.student(views.crops)
        try:
            teacher = method.teacher.forward(views, student, labels)
        except Exception as error:
            raise Misfit(("teacher",), f"refuses the crops: {first_line(error)}") from error
    wanted, found = (len(views.crops[0]), *student.z.shape[1:]), tuple(teacher.shape)
    if found != wanted:
        raise Misfit(("teacher",), f"gives {found} numbers (views, images, outputs), not {wanted}")


def _check_tokens(spec: Spec, method: Method) -> None:
    """Two images without memory, through both networks: both must give tokens of one width."""
    objective = method.token_objective
    if objective is None:
        for key in ("token_head", "token_targets"):
            if getattr(spec, key) is not None:
                raise Misfit((key,), "goes with a token_loss, and there is none")
        return
    teacher = ability(method.teacher, GivesTokenTargets)
    if teacher is None:
        name = spec.teacher.name
        raise Misfit(("token_loss",), f"needs a teacher with patch tokens, and {name!r} gives none")
    views, labels = _images(method.augment, 2)
    with torch.no_grad():
        with _needing_tokens("backbone"):
            student = method.student(views.crops)
        with _needing_tokens("teacher"):
            _, taught = teacher.forward_tokens(views, student, labels)
        tokens = student.tokens
        assert tokens is not None, "there is a token head"
        if tokens.shape[2] != taught.shape[2]:
            raise Misfit(
                ("token_head",),
                f"gives tokens of {tokens.shape[2]} numbers, those of the teacher have {taught.shape[2]}; "
                "token_head.dim says how many",
            )
        with misfits("token_loss"):
            objective(tokens, taught, 0.0)


@contextmanager
def _needing_tokens(whose: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        message = f"needs patch tokens of the {whose} ({first_line(error)})"
        raise Misfit(("token_loss",), message) from error


def _check_parts(spec: Spec, method: Method) -> None:
    """Parts of a batch give what the whole batch gives, unless a backbone looks at more than one image."""
    if spec.train.batch_size < collectives.processes():
        whole = f"a batch of {spec.train.batch_size} cannot be divided by {collectives.processes()} processes"
        raise Misfit(("train", "batch_size"), whole)
    loc, parts = ("train", "accumulate"), spec.train.accumulate
    if parts > spec.train.batch_size:
        raise Misfit(loc, f"a batch of {spec.train.batch_size} has no so many parts")
    if parts == 1:
        return
    if spec.train.compile == "graphs":
        raise Misfit(("train", "compile"), "CUDA graphs are of whole batches; with accumulate, true is right")
    norms = [
        module
        for module in method.student.backbone.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if len(norms) > MOST_NORMS:
        raise Misfit(
            loc,
            f"the backbone has {len(norms)} layers of batch norm, each of which needs a pass more over the "
            f"parts of a batch, so there may be {MOST_NORMS}; 1 is right, or another backbone",
        )
    for key in ("compile", "gradient_checkpointing"):
        if norms and getattr(spec.train, key):
            raise Misfit(("train", key), "parts of a batch (train.accumulate) and batch norm go without it")


def _images(augment: Augment, count: int) -> tuple[Views, torch.Tensor]:
    """Crops and labels of so many images, without memory."""
    crops = [torch.zeros(v, count, 3, pixels, pixels, device="meta") for v, pixels in augment.groups]
    return Views(crops, augment.pairs), torch.zeros(count, dtype=torch.int64, device="meta")


def _check_one_image(train: Train, method: Method) -> None:
    """Networks that get one image at a time must do with it; batch norm has no variance of one value."""
    if train.batch_size > 1:
        return
    views, labels = _images(method.augment, 1)
    try:
        with torch.no_grad():
            method.teacher.forward(views, method.student(views.crops), labels)
    except ValueError as error:
        message = "batch norm needs at least 2 images at once, and gets 1"
        raise Misfit(("train", "batch_size"), message) from error


def checkpoint_gradients(network: Network) -> None:
    """Turn gradient checkpointing on in the backbone; a Misfit where it has none."""
    backbone = ability(network.backbone, CheckpointsGradients)
    with misfits("train", "gradient_checkpointing"):
        if backbone is None:
            raise ValueError(f"the backbone, {type(network.backbone).__name__}, cannot do that")
        backbone.checkpoint_gradients()


def check_needs(
    names: dict[str, str], registry: Registry, evaluators: Sequence[tuple[str, Evaluator]]
) -> None:
    """A Misfit where an evaluator, with its name, needs an ability that the component of a field lacks."""
    for i, (its, evaluator) in enumerate(evaluators):
        loc = ("evaluators", i, "name")
        try:
            needs = needs_of(evaluator)
        except TypeError as error:
            raise Misfit(loc, f"{its!r} needs something unknown: {error}") from error
        for field, needed in needs:
            asks = f"{its!r} asks for {' and '.join(members(needed))}"
            if field not in names:
                raise Misfit(loc, f"{asks}, but there is no {field}")
            if not registry.find(KIND_OF_FIELD[field], names[field]).has(needed):
                raise Misfit(loc, f"{asks}, which {field} {names[field]!r} does not give")
        for name in representations_of(evaluator) - REPRESENTATIONS.keys():
            known = ", ".join(REPRESENTATIONS)
            raise Misfit(loc, f"{its!r} asks for the representation {name!r} (there are: {known})")


def _facts(method: Method, evaluators: Sequence[Evaluator]) -> list[str]:
    student, groups = method.student, method.augment.groups
    count = sum(p.numel() for p in student.parameters())
    backbone = sum(p.numel() for p in student.backbone.parameters())
    crops = " + ".join(f"{views} x {pixels} px" for views, pixels in groups)
    return [
        f"student: {count / 1e6:.2f} M parameters, {backbone / 1e6:.2f} M of them in the backbone",
        f"crops of each image: {crops}; the teacher sees the first {groups[0][0]}",
        f"features: {student.backbone.dim}; outputs: {student.head.dim}",
        *(f"evaluator: {evaluator.protocol}" for evaluator in evaluators),
    ]
