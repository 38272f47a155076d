"""How targets and losses are tried."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dino_lab.protocols import GivesMeasures, ability
from dino_lab.testing.networks import expect_gradients
from dino_lab.testing.tested_component import CPU, numbers
from dino_lab.testing.trial import Size, Stateful, same
from dino_lab.types import Output, Views


class TargetsTrial(Stateful):
    """The teacher's output [T, B, K] to a target of the same shape."""

    sizes: ClassVar = [(2, 2, 6), (1, 3, 8), (3, 2, 7)]  # T, B, K

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """K."""
        return size[-1:]

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """Targets at the start, and half-way through the run."""
        return [self._call(part, numbers(*size, seed=i).to(device), i / 2) for i in range(2)]

    def rules(self) -> None:
        """Distributions where they are promised, no state that keeps a graph, none learned in evaluation."""
        size = self.sizes[0]
        part, teacher = self.make(size), numbers(*size).requires_grad_()
        target = self._call(part, teacher, 0.0).detach()
        if part.distribution:
            one = torch.allclose(target.sum(-1), torch.ones(size[:2]), atol=1e-4)
            self.expect(
                one and bool((target >= 0).all()),
                "says distribution = True, but its rows are none; they should sum to 1 and not be negative",
            )
        self.expect(
            all(tensor.grad_fn is None for tensor in part.state_dict(keep_vars=True).values()),
            "its state keeps the graph of a step that is over; it should be updated under torch.no_grad()",
        )
        part.eval()
        before = [tensor.clone() for tensor in part.state_dict().values()]
        self._call(part, numbers(*size, seed=2), 0.5)
        self.expect(
            same(before, list(part.state_dict().values())),
            "its state changes in evaluation mode; it should only do so while self.training",
        )

    def _call(self, part: Any, teacher: Tensor, progress: float) -> Tensor:
        before = teacher.detach().clone()
        with self.subject.trying(f"forward of the output {list(teacher.shape)}", "it should return as much"):
            target = part(teacher, progress)
        if teacher.device.type != "meta":
            self.expect(
                torch.equal(before, teacher),
                "changes the teacher's output in place; it should make a new tensor",
            )
        return self.expect_output(target, tuple(teacher.shape), "forward", teacher.device)


class LossTrial(Stateful):
    """Student [S, B, K], target [T, B, K] and pairs [S, T] to a scalar."""

    sizes: ClassVar = [(3, 2, 2, 6), (1, 1, 3, 8), (5, 2, 3, 7), (3, 3, 2, 4)]  # S, T, B, K

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """K."""
        return size[-1:]

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The loss, of pairs as multi-crop has them."""
        return [self._call(part, *(tensor.to(device) for tensor in _inputs(*size)))]

    def rules(self) -> None:
        """Gradients, pairs that matter, and the two promises."""
        size = self.sizes[0]
        student, target, pairs = _inputs(*size)
        self._call(self.make(size), student.requires_grad_(), target, pairs).backward()
        expect_gradients(self, [student.grad])
        value, other = (self._call(self.make(size), student, target, p).item() for p in (pairs, 1 - pairs))
        self.expect(
            value != other,
            "is the same whichever pairs it is given; it should compare only where pairs[s, t] is not 0",
        )
        part = self.make(size)
        if (measuring := ability(part, GivesMeasures)) is not None:
            self._check_measures(measuring, student, target, pairs)
        if part.negatives:
            self._call(part, student, target, 2 * pairs - 1)
        if part.cross_entropy:
            entropy = torch.special.entr(target).sum(-1).mean(1)  # [T]
            least = (entropy * pairs.sum(0)).sum().item() / pairs.sum().item()
            self.expect(
                value >= least - 1e-4,
                f"says cross_entropy = True, but is {value:g}, below the target's entropy {least:g}; it "
                "should say False",
            )

    def _check_measures(self, part: GivesMeasures, student: Tensor, target: Tensor, pairs: Tensor) -> None:
        before = [tensor.clone() for tensor in self._state(part)]
        with self.subject.trying("measure", "it should return scalars by name"):
            measures = part.measure(student, target, pairs)
        self.expect(
            isinstance(measures, dict) and all(isinstance(name, str) for name in measures),
            f"measure is of the type {type(measures).__name__}; it should be a dict of scalars by name",
        )
        for name, value in measures.items():
            fits = isinstance(value, Tensor) and value.shape == () and bool(value.isfinite())
            self.expect(fits, f"measures {name!r} as {value!r}; it should be a finite scalar tensor")
        self.expect(
            same(before, self._state(part)),
            "measure changes its state; it should leave that to forward, which is called after it",
        )

    def _state(self, part: Any) -> list[Tensor]:
        return list(part.state_dict().values())

    def _call(self, part: Any, student: Tensor, target: Tensor, pairs: Tensor) -> Tensor:
        before = [student.detach().clone(), target.clone()]
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (student, target, pairs))
        with self.subject.trying(f"forward of {shapes}", "it should return a scalar"):
            loss = part(student, target, pairs)
        if student.device.type != "meta":
            self.expect(
                same(before, [student.detach(), target]),
                "changes its inputs in place; it should make new tensors",
            )
        return self.expect_output(loss, (), "forward", student.device)


class RegularizerTrial(Stateful):
    """Views and what the student says of them to a scalar."""

    sizes: ClassVar = [(2, 3, 2), (1, 1, 3), (3, 5, 4)]  # V views of the teacher, S, B

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """Nothing."""
        return ()

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The value."""
        return [self._call(part, *_said(size, device))]

    def rules(self) -> None:
        """A gradient, if not to the features then to the outputs."""
        part = self.make(self.sizes[0])
        views, output = _said(self.sizes[0], CPU)
        tensors = [output.features.requires_grad_(), output.z.requires_grad_()]
        value = self._call(part, views, output)
        if value.requires_grad:
            value.backward()
        expect_gradients(self, [tensor.grad for tensor in tensors])

    def _call(self, part: Any, views: Views, output: Output) -> Tensor:
        shape = list(output.features.shape)
        with self.subject.trying(f"forward of features {shape}", "it should return a scalar"):
            value = part(views, output)
        return self.expect_output(value, (), "forward", output.z.device)


def _said(size: Size, device: torch.device) -> tuple[Views, Output]:
    V, S, B = size
    crops = [torch.full((views, B, 3, 8, 8), 0.5, device=device) for views in (V, S - V) if views]
    z = numbers(S, B, 6, seed=1).to(device)
    output = Output(numbers(S, B, 8).to(device), z, z)
    return Views(crops, torch.ones(S, V, dtype=torch.int8, device=device)), output


def _inputs(S: int, T: int, B: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    # Distributions are targets that every loss understands.
    pairs = torch.ones(S, T, dtype=torch.int8) - (torch.eye(S, T, dtype=torch.int8) if S > 1 else 0)
    return numbers(S, B, K), numbers(T, B, K, seed=1).softmax(-1), pairs
