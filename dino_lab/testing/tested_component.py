"""The component under test, and the small method that it is tried in."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn

import torch
from pydantic import ValidationError
from torch import Tensor

from dino_lab.errors import Misfit, SpecError
from dino_lab.network import Network
from dino_lab.registry import Entry, Params, Registry
from dino_lab.registry.kinds import KIND_OF_FIELD
from dino_lab.spec.file import load_text
from dino_lab.spec.model import Spec
from dino_lab.training.build import Run, build

CPU = torch.device("cpu")

# Trains on the CPU in milliseconds; each step moves the student and the teacher.
METHOD = """\
name: method
data: {name: shapes, size: 32, classes: 3, train_images: 24, test_images: 12}
augment: {name: multicrop, global_size: 32, local_size: 16, local_views: 1}
backbone: {name: vit, width: 16, depth: 1, heads: 2, patch: 8, init_std: 0.2}
head: {name: prototypes, hidden: 16, bottleneck: 8, dim: 12}
teacher: {name: ema, momentum: 0.9}
targets: {name: center}
loss: {name: cross_entropy}
optim: {name: adamw, lr: 1e-2, lr_scaling: {rule: none}, weight_decay: 0}
train: {epochs: 3, batch_size: 3, log_every: 1}
"""


class Failed(AssertionError):
    """A component that does not keep its contract: what is wrong, and what would be right."""


@dataclass(frozen=True)
class TestedComponent:
    """A component, the parameters that it is given, and the method around it."""

    entry: Entry
    given: dict[str, Any]
    settings: tuple[str, ...]
    registry: Registry
    field: str = field(init=False)

    def __post_init__(self) -> None:
        kind = "augment" if self.is_operation else self.entry.kind
        fields = (f for f, its_kind in KIND_OF_FIELD.items() if its_kind == kind)
        object.__setattr__(self, "field", next(fields))

    @property
    def is_operation(self) -> bool:
        """Whether it stands in the list of an augmentation."""
        return self.entry.kind == "operation"

    @property
    def takes_a_list(self) -> bool:
        """Whether its place in a spec holds several components."""
        return bool(Spec.model_fields[self.field].default == ())

    @property
    def key(self) -> str:
        """The dotted key of its place in a spec."""
        if self.is_operation:
            return "augment.groups.0.ops.1"
        return f"{self.field}.0" if self.takes_a_list else self.field

    def fail(self, sentence: str, cause: BaseException | None = None) -> NoReturn:
        """Say what is wrong and what would be right."""
        raise Failed(f"{self.entry.kind} {self.entry.name!r}: {sentence}") from cause

    def expect(self, condition: bool, sentence: str) -> None:
        """Fail unless `condition`."""
        if not condition:
            self.fail(sentence)

    @contextmanager
    def trying(self, what: str, right: str) -> Iterator[None]:
        """Fail where `what` raises."""
        try:
            yield
        except Failed:
            raise
        except Exception as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            self.fail(f"{what} raises {said}; {right}", error)

    def slot(self, **changes: Any) -> str:
        """The setting that puts the component into its place."""
        component: Any = {"name": self.entry.name, **self.given, **changes}
        if self.is_operation:
            group = {"views": 2, "size": 32, "ops": ["crop", component]}
            return f"augment={json.dumps({'name': 'views', 'groups': [group]}, default=str)}"
        return f"{self.field}={json.dumps([component] if self.takes_a_list else component, default=str)}"

    def spec(self, *settings: str) -> Spec:
        """The method with the component in it."""
        given = [self.slot(), *self.settings, *settings]
        try:
            return load_text(METHOD, "method.yaml", given, self.registry).spec
        except SpecError as error:
            line = str(error).splitlines()[0]
            self.fail(
                f"a spec with it is refused: {line}; params={{...}} gives what it cannot do without", error
            )

    @cached_property
    def params(self) -> Params:
        """Its validated parameters."""
        value: Any = getattr(self.spec(), self.field)
        value = value.groups[0].ops[1] if self.is_operation else value
        params = value[0] if self.takes_a_list else value
        assert isinstance(params, Params)
        return params

    def params_with(self, **changes: Any) -> Params | None:
        """The parameters with some of them changed, or None where a spec may not say so."""
        text = json.dumps({**self.params.model_dump(mode="json", serialize_as_any=True), **changes})
        try:
            return self.entry.params.model_validate_json(text, strict=True)
        except ValidationError:
            return None

    @cached_property
    def method(self) -> Run:
        """The method without the component: what gives it its surroundings."""
        return build(load_text(METHOD, "method.yaml", self.settings, self.registry).spec, self.registry, CPU)

    def student(self) -> Network:
        """A student of its own, always with the same weights."""
        return copy.deepcopy(self.method.student)

    def run(self, *settings: str) -> Run:
        """The method with the component in it, built."""
        try:
            return build(self.spec(*settings), self.registry, CPU)
        except Misfit as misfit:
            self.fail(
                f"does not go together with the method that it is tried in: {misfit}; "
                "settings=['key=value', ...] changes that method",
                misfit,
            )


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pictures(batch: int, pixels: int, seed: int = 0) -> torch.Tensor:
    """Images uint8 [B, 3, H, W] of noise, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, pixels, pixels), dtype=torch.uint8, generator=generator)


def tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state, by its dotted name."""
    if isinstance(state, Tensor):
        return {prefix.lstrip("."): state.clone()}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}.{key}").items()}
