"""What is asked of a component of any kind, given how one of its kind is made and called."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor, nn

from dino_lab.building.check import untrained
from dino_lab.building.seeding import seed_everything
from dino_lab.protocols import PROTOCOLS
from dino_lab.registry import Params
from dino_lab.testing.tested_component import CPU, TestedComponent

Size = tuple[int, ...]


class Trial(ABC):
    """How components of one kind are tried; a kind is one subclass."""

    sizes: ClassVar[Sequence[Size]]  # of the inputs; what each number is, `context` and `outputs` decide

    def __init__(self, subject: TestedComponent) -> None:
        self.subject, self.expect = subject, subject.expect

    @abstractmethod
    def context(self, size: Size, device: torch.device) -> tuple[Any, ...]:
        """What the builder supplies."""

    @abstractmethod
    def outputs(self, part: Any, size: Size, device: torch.device) -> list[Tensor]:
        """All that it says to inputs of one size, once that is known to have the right form."""

    def rules(self) -> None:  # noqa: B027 - a kind may have none
        """What this kind promises besides."""

    def check(self) -> None:
        """Everything."""
        part = self.make(self.sizes[0])
        self._check_attributes(part)
        for size in self.sizes:
            self.say(self.make(size), size)
        self._check_determinism()
        self.check_memory()
        self.rules()
        self._check_parameters()

    def make(
        self, size: Size, seed: int = 0, device: torch.device = CPU, params: Params | None = None
    ) -> Any:
        """An instance whose first random numbers come from `seed`."""
        context = self.context(size, device)
        seed_everything(seed, "part")
        entry = self.subject.entry
        with self.subject.trying("its constructor", "it should build with the parameters that it accepts"):
            part = self.subject.registry.build(entry.kind, params or self.subject.params, *context)
        return part.to(device) if isinstance(part, nn.Module) else part

    def say(self, part: Any, size: Size, seed: int = 0, device: torch.device = CPU) -> list[Tensor]:
        """`outputs`, with the global generators seeded."""
        seed_everything(seed, "call")
        return self.outputs(part, size, device)

    @abstractmethod
    def check_memory(self) -> None:
        """That a resumed run goes on as one that never stopped."""

    def _check_attributes(self, part: Any) -> None:
        kind = self.subject.entry.kind
        hints = get_type_hints(PROTOCOLS[kind])
        for name in PROTOCOLS[kind].__annotations__:
            wanted = hints[name]
            self.expect(hasattr(part, name), f"has no attribute {name!r}; a {kind} says {name}")
            value = getattr(part, name)
            if wanted in (bool, int, str):
                self.expect(
                    type(value) is wanted,
                    f"its {name} is {value!r}; it should be of the type {wanted.__name__}",
                )

    def _check_parameters(self) -> None:
        entry = self.subject.entry
        if entry.kind in ("augment", "teacher", "targets", "loss", "regularizer"):
            context = self.context(self.sizes[0], CPU)
            part = self.subject.registry.build(entry.kind, self.subject.params, *context)
            student = next((given for given in context if isinstance(given, nn.Module)), None)
            fault = untrained(part, student)
            self.expect(fault is None, fault or "")

    def _check_determinism(self) -> None:
        size = self.sizes[0]
        said = [self.say(self.make(size), size) for _ in range(2)]
        self.expect(
            same(*said),
            "says something else although the seed is the same; its random numbers should come from the "
            "generators that a run seeds: torch's, NumPy's and Python's global ones",
        )

    def expect_output(self, output: Any, shape: Size, name: str, device: torch.device) -> Tensor:
        """Fail unless `output` is a finite tensor of this shape: float32, but in autocast."""
        right = f"it should be a float32 tensor {list(shape)} on the inputs' device"
        if not isinstance(output, Tensor):
            self.subject.fail(f"{name} is of the type {type(output).__name__}; {right}")
        self.expect(tuple(output.shape) == shape, f"{name} has the shape {list(output.shape)}; {right}")
        exact = output.dtype == torch.float32 or torch.is_autocast_enabled(device.type)
        self.expect(output.is_floating_point() and exact, f"{name} is {output.dtype}; {right}")
        self.expect(output.device.type == device.type, f"{name} is on {output.device}; {right}")
        if device.type != "meta":
            self.expect(bool(output.isfinite().all()), f"{name} is not finite; {right}, without inf and nan")
        return output


class Stateless(Trial):
    """Kinds of which a checkpoint keeps nothing: a second call is like the first."""

    def check_memory(self) -> None:
        """Nothing is remembered from one call to the next, nor taken from the global generators."""
        size = self.sizes[0]
        part = self.make(size)
        first = self.say(part, size)
        self.expect(
            same(first, self.say(part, size)),
            "says something else when it is called again; a checkpoint keeps nothing of this kind, so it "
            "should remember nothing",
        )
        self.expect(
            same(first, self.say(part, size, seed=1)),
            "says something else when torch's global generator does; its random numbers should come from "
            f"{self.randomness}",
        )

    randomness: ClassVar[str]  # where random numbers may come from


class Stateful(Trial):
    """Kinds that are modules, and whose `state_dict` is in the checkpoint."""

    def check(self) -> None:
        """Everything, in bfloat16 and on another device too."""
        part = self.make(self.sizes[0])
        self.expect(
            isinstance(part, nn.Module),
            "is no torch.nn.Module; a checkpoint holds its state_dict, so it should be one",
        )
        super().check()
        self._check_bfloat16()
        self._check_device()

    def check_memory(self) -> None:
        """All that changes is in the state_dict."""
        size = self.sizes[0]
        used, fresh = self.make(size), self.make(size, seed=1)
        self.use(used, size)
        buffer = io.BytesIO()
        torch.save(used.state_dict(), buffer)
        buffer.seek(0)
        right = "what changes should be a registered buffer or a parameter"
        with self.subject.trying("its state_dict, put into another instance,", right):
            fresh.load_state_dict(torch.load(buffer, weights_only=True))
        self.expect(
            same(self.say(used, size), self.say(fresh, size)),
            f"its state_dict does not hold all that it has become: another instance with it says something "
            f"else; {right}",
        )

    def use(self, part: Any, size: Size) -> None:
        """Let its state change as in a step or two."""
        for seed in range(2):
            self.say(part, size, seed)

    def _check_bfloat16(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.say(self.make(self.sizes[0]), self.sizes[0])

    def _check_device(self) -> None:
        """On a GPU, or where there is none on the device that has shapes but no memory."""
        device = torch.device("cuda" if torch.cuda.is_available() else "meta")
        size = self.sizes[0]
        try:
            self.say(self.make(size, device=device), size, device=device)
        except AssertionError as failed:
            if device.type == "meta" and isinstance(failed.__cause__, NotImplementedError):
                return  # torch knows no shapes for one of its operations
            self.subject.fail(
                f"runs on the CPU only ({failed}); tensors should be made on the inputs' device, and nothing "
                "should wait for it, as .item() does",
                failed,
            )


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether all tensors are equal, bit for bit."""
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
