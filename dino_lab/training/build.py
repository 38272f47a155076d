"""From a `Spec` to live parts. The only file that knows every kind of component."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dino_lab.encoder import Encoder
from dino_lab.errors import Misfit, UserError
from dino_lab.kinds import KIND_OF_FIELD
from dino_lab.network import Network
from dino_lab.protocols import Augment, Data, Evaluator, Loss, Regularizer, Targets, Teacher
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.training.optimizer import make_optimizer
from dino_lab.training.rows import REGULARIZER
from dino_lab.training.seeding import seed_everything, seed_for
from dino_lab.types import Views

STATEFUL = ("student", "teacher", "targets", "loss", "optimizer")


@dataclass(frozen=True)
class Method:
    """The parts of a spec that are the same whatever the data: what is learned, and how."""

    augment: Augment
    student: Network
    teacher: Teacher
    targets: Targets
    loss: Loss
    regularizers: dict[str, Regularizer]
    evaluators: tuple[Evaluator, ...]


@dataclass(frozen=True)
class Run:
    """Everything live that a spec describes; owns all state."""

    spec: Spec
    device: torch.device
    data: Data
    augment: Augment
    student: Network
    teacher: Teacher
    targets: Targets
    loss: Loss
    regularizers: dict[str, Regularizer]  # by the name that a row gives them
    evaluators: tuple[Evaluator, ...]
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training images."""
        return self.data.train_images // self.spec.train.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.spec.train.epochs

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step` (from 0) is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def generator(self, step: int) -> torch.Generator:
        """The source of every random number of the crops of this step."""
        return torch.Generator(self.device).manual_seed(seed_for(self.spec.seed, "crops", step))

    def autocast(self) -> torch.autocast:
        """The precision of the networks' matrix products."""
        enabled = self.spec.train.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def state_dict(self) -> dict[str, Any]:
        """All that changes during a run."""
        return {name: part.state_dict() for name, part in self._stateful().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        for name, part in self._stateful().items():
            part.load_state_dict(state[name])

    def _stateful(self) -> dict[str, Any]:
        return {part: getattr(self, part) for part in STATEFUL} | self.regularizers

    def network(self, of: str) -> Network:
        """The teacher's network if `of` is "teacher" and it has one, else the student."""
        return self.teacher.network if of == "teacher" and self.teacher.network is not None else self.student

    def due(self, steps: int) -> list[tuple[str, Evaluator]]:
        """Name and evaluator of those that are due after so many steps: at 0 and at the ends of epochs."""
        epoch, inside = divmod(steps, self.steps_per_epoch)
        last = steps == self.total_steps
        named = zip(self.spec.evaluators, self.evaluators, strict=True)
        return [(p.name, e) for p, e in named if not inside and (last or epoch % e.every == 0)]

    def evaluate_after(self, steps: int) -> dict[str, float]:
        """Scores of the evaluators that are due after so many steps."""
        scores: dict[str, float] = {}
        for name, evaluator in self.due(steps):
            scores |= {f"{name}.{key}": value for key, value in self.evaluate(evaluator).items()}
        return scores

    def evaluate(self, evaluator: Evaluator) -> dict[str, float]:
        """Scores of one evaluator."""
        with self._encoder(evaluator.of) as encode:
            return evaluator.forward(encode, self.data)

    def files(self, evaluator: Any) -> dict[str, bytes]:
        """Name and content of the files that an evaluator leaves, where it leaves any."""
        if not hasattr(evaluator, "files"):
            return {}
        with self._encoder(evaluator.of) as encode:
            return evaluator.files(encode, self.data)

    @contextmanager
    def _encoder(self, of: str) -> Iterator[Encoder]:
        """The teacher's network, or the student's, in evaluation mode, at the size of the teacher's crops."""
        network = self.network(of)
        mode = network.training
        network.eval()
        try:
            yield Encoder(network, self.augment.groups[0][1], self.autocast)
        finally:
            network.train(mode)


def build(spec: Spec, registry: Registry, device: torch.device) -> Run:
    """All parts, seeded one by one, so that changing one leaves the first weights of the others alone."""
    check(spec, registry)
    data: Data = _part(spec, registry, device, "data", device)
    if spec.train.batch_size > data.train_images:
        raise Misfit(
            ("train", "batch_size"),
            f"{spec.train.batch_size} is more than the {data.train_images} training images there are",
        )
    augment = _part(spec, registry, device, "augment")
    method = _method(spec, registry, device, augment, channels=data.channels, mean=data.mean, std=data.std)
    if hasattr(method.teacher, "check_classes"):
        with _misfits("head", "dim"):
            method.teacher.check_classes(data.classes)
    if spec.train.compile:
        for network in filter(None, (method.student, method.teacher.network)):
            network.compile()
    return Run(
        spec=spec,
        device=device,
        data=data,
        **vars(method),
        optimizer=make_optimizer(spec.optim, method.student),
        parameters=[p for p in method.student.parameters() if p.requires_grad],
    )


@dataclass(frozen=True)
class Check:
    """What is known of a spec before any data is read."""

    lines: list[str]


def check(spec: Spec, registry: Registry) -> Check:
    """Build every part but the data without memory, and see whether they go together; a Misfit says where."""
    augment: Augment = _part(spec, registry, torch.device("cpu"), "augment")
    with torch.device("meta"):
        method = _method(spec, registry, torch.device("meta"), augment, channels=3, mean=(0.0,), std=(1.0,))
    _check_pairs(spec, augment, method.loss)
    for _, pixels in augment.groups:
        _check_size(method.student.backbone, pixels)
    _check_heads(spec, method.student)
    _check_teacher(method)
    _check_needs(spec, registry, method.evaluators)
    if spec.train.accumulate > spec.train.batch_size:
        raise Misfit(("train", "accumulate"), f"a batch of {spec.train.batch_size} has no so many parts")
    return Check(_facts(method))


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
            raise Misfit(("teacher",), f"refuses the crops: {_first_line(error)}") from error
    wanted, found = (len(views.crops[0]), *student.z.shape[1:]), tuple(teacher.shape)
    if found != wanted:
        raise Misfit(("teacher",), f"gives {found} numbers (views, images, outputs), not {wanted}")


def _check_needs(spec: Spec, registry: Registry, evaluators: tuple[Evaluator, ...]) -> None:
    for i, evaluator in enumerate(evaluators):
        for need in getattr(evaluator, "needs", ()):
            field, _, capability = need.partition(".")
            name = getattr(spec, field).name
            if not hasattr(registry.find(KIND_OF_FIELD[field], name).cls, capability):
                asks = f"{spec.evaluators[i].name!r} asks for {capability}"
                raise Misfit(("evaluators", i, "name"), f"{asks}, which {field} {name!r} does not give")


def _facts(method: Method) -> list[str]:
    student, groups = method.student, method.augment.groups
    count = sum(p.numel() for p in student.parameters())
    backbone = sum(p.numel() for p in student.backbone.parameters())
    crops = " + ".join(f"{views} x {pixels} px" for views, pixels in groups)
    return [
        f"student: {count / 1e6:.2f} M parameters, {backbone / 1e6:.2f} M of them in the backbone",
        f"crops of each image: {crops}; the teacher sees the first {groups[0][0]}",
        f"features: {student.backbone.dim}; outputs: {student.head.dim}",
        *(f"evaluator: {evaluator.protocol}" for evaluator in method.evaluators),
    ]


def _method(
    spec: Spec,
    registry: Registry,
    device: torch.device,
    augment: Augment,
    *,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Method:
    def make(field: str, *context: Any) -> Any:
        return _part(spec, registry, device, field, *context)

    backbone = make("backbone", channels, max(pixels for _, pixels in augment.groups))
    head = make("head", backbone.dim)
    predictor = make("predictor", head.dim) if spec.predictor is not None else None
    student = Network(backbone, head, predictor, mean=mean, std=std).to(device)
    evaluators: list[Evaluator] = []
    for i, params in enumerate(spec.evaluators):
        with _misfits("evaluators", i):
            evaluators.append(registry.build("evaluator", params))
    return Method(
        augment=augment,
        student=student,
        teacher=make("teacher", student),
        targets=make("targets", head.dim),
        loss=make("loss", head.dim),
        regularizers=_regularizers(spec, registry, device),
        evaluators=tuple(evaluators),
    )


def _regularizers(spec: Spec, registry: Registry, device: torch.device) -> dict[str, Regularizer]:
    """By name; a second one of a name bears a number."""
    found: dict[str, Regularizer] = {}
    for i, params in enumerate(spec.regularizers):
        seed_everything(spec.seed, "build", "regularizers", i)
        with _misfits("regularizers", i):
            part = registry.build("regularizer", params)
        earlier = sum(other.name == params.name for other in spec.regularizers[:i])
        name = f"{params.name}_{earlier + 1}" if earlier else params.name
        found[REGULARIZER + name] = part.to(device)
    return found


def _part(spec: Spec, registry: Registry, device: torch.device, field: str, *context: Any) -> Any:
    """The component that a field of the spec names, seeded by that field alone."""
    seed_everything(spec.seed, "build", field)
    with _misfits(field):
        part = registry.build(KIND_OF_FIELD[field], getattr(spec, field), *context)
    return part.to(device) if isinstance(part, nn.Module) else part


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
        with _misfits("loss"):
            loss.check_pairs(pairs)


def _check_size(backbone: Any, pixels: int) -> None:
    try:
        if hasattr(backbone, "check_size"):
            backbone.check_size(pixels)
        backbone(torch.zeros(2, 3, pixels, pixels, device="meta"))
    except Exception as error:
        message = f"refuses the crops of {pixels} x {pixels} px: {_first_line(error)}"
        raise Misfit(("backbone",), message) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


@contextmanager
def _misfits(*loc: str | int) -> Iterator[None]:
    """Say of a constructor's ValueError or UserError which part of the spec it belongs to.

    A message that begins with a key of that part, as "data.path: ..." does, belongs to that key.
    """
    try:
        yield
    except Misfit:
        raise
    except (ValueError, UserError) as error:
        key, _, message = str(error).partition(": ")
        prefix = ".".join(map(str, loc)) + "."
        if key.startswith(prefix) and key.replace(".", "").replace("_", "").isalnum():
            raise Misfit((*loc, *key.removeprefix(prefix).split(".")), message) from error
        raise Misfit(loc, str(error)) from error
