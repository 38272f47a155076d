"""How teachers are tried."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from dino_lab.network import Network
from dino_lab.protocols import GivesAnswer, ability
from dino_lab.testing.tested_component import numbers
from dino_lab.testing.trial import Size, Stateful, same
from dino_lab.types import Views


class TeacherTrial(Stateful):
    """Views, the student's output and labels to what the student should agree with, [T, B, K]."""

    sizes: ClassVar = [(2, 3, 2), (1, 1, 3), (3, 5, 2)]  # T, S, B

    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """The student."""
        return (self.subject.student().to(device),)

    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """The teacher's outputs."""
        return [self._call(part, self.subject.student().to(device), size)]

    def use(self, part: Any, size: Size) -> None:
        """Two steps of a student that moves."""
        for seed in range(2):
            self.say(part, size, seed)
            with self.subject.trying("update", "it should follow the student, after each optimizer step"):
                part.update(self._moved(seed), seed / 2, seed == 0)

    def rules(self) -> None:
        """No gradient to the teacher, and no hand on the student."""
        size = self.sizes[0]
        student = self._moved(1)
        part = self.subject.registry.build(self.subject.entry.kind, self.subject.params, student)
        output = self._call(part, student, size)
        if part.network is not None:
            self._check_network(part.network, student)
            self.expect(
                not output.requires_grad,
                "its output carries a gradient although it has a network of its own; it should be made under "
                "torch.no_grad()",
            )
            self._check_answer(part, output, size)
        # A teacher that is the student may be asked to let the gradient through.
        if (stops := getattr(self.subject.params, "stop_gradient", None)) is not None:
            self.expect(
                output.requires_grad is not stops,
                f"its output carries {'a' if stops else 'no'} gradient with stop_gradient "
                f"{str(stops).lower()}; it should be detached if that is true, and only then",
            )
        before = [tensor.clone() for tensor in student.state_dict().values()]
        part.update(student, 0.0, True)
        self.expect(
            same(before, list(student.state_dict().values())),
            "changes the student in update; it should only read it",
        )

    def _check_network(self, network: Any, student: Network) -> None:
        self.expect(
            isinstance(network, Network),
            f"its network is of the type {type(network).__name__}; it should be a Network, or None",
        )
        own = {parameter.data_ptr() for parameter in network.parameters()}
        self.expect(
            not own & {parameter.data_ptr() for parameter in student.parameters()},
            "its network shares weights with the student; it should be a copy, or None if it is the student",
        )
        self.expect(
            not any(parameter.requires_grad for parameter in network.parameters()),
            "a gradient can reach its network; requires_grad_(False) should keep it away",
        )

    def _check_answer(self, part: Any, output: Tensor, size: Size) -> None:
        """That it is the same whoever asks the network."""
        if (answering := ability(part, GivesAnswer)) is None:
            return
        with torch.no_grad():
            answer = answering.answer(part.network(self._crops(size, output.device)[:1]))
        self.expect(
            same([answer], [output]),
            "answer says something else than forward; it should make the same of the network's output, or be "
            "left out",
        )

    def _moved(self, seed: int) -> Network:
        student = self.subject.student()
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * numbers(*parameter.shape, seed=seed + 1))
        return student

    def _call(self, part: Any, student: Network, size: Size) -> Tensor:
        T, S, B = size
        device = student.mean.device
        crops = self._crops(size, device)
        views = Views(crops, torch.ones(S, T, dtype=torch.int8, device=device))
        labels = torch.arange(B, device=device) % self.subject.method.data.classes
        with self.subject.trying(f"forward of {T} views, {B} images each,", "it should return [T, B, K]"):
            said = student(crops)
            output = part(views, said, labels)
        return self.expect_output(output, (T, B, said.z.shape[-1]), "forward", device)

    def _crops(self, size: Size, device: torch.device) -> list[Tensor]:
        T, S, B = size
        groups = self.subject.method.augment.groups
        counts = ((T, groups[0][1]), (S - T, groups[-1][1]))
        return [
            numbers(views, B, 3, pixels, pixels).sigmoid().to(device) for views, pixels in counts if views
        ]
