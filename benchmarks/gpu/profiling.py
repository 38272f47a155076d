"""What a step asks of the device: kernels by time, launches, waits; and the times of its phases."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import synchronize
from dino_lab.training import loop
from dino_lab.training.build import Run

LAUNCHING = (
    "cudaLaunchKernel",
    "cudaLaunchKernelExC",
    "cuLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
)
WAITING = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
OTHERS = ("cudaMemcpyAsync", "cudaMemsetAsync", "aten::_local_scalar_dense", "aten::item", "aten::_to_copy")


@contextmanager
def counted(device: str) -> Iterator[Any]:
    """A profile of what happens inside, which the device has done at its end."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    synchronize(device)
    with profile(activities=activities, acc_events=True) as found:
        yield found
        # Recorded, and taken away again below: it is no part of what is measured.
        synchronize(device)


def calls(found: Any) -> Counter[str]:
    """How often each call was made on the host; without the last wait, which is `counted`'s own."""
    counts: Counter[str] = Counter(
        event.name for event in found.events() if event.device_type == DeviceType.CPU
    )
    counts["cudaDeviceSynchronize"] = max(0, counts["cudaDeviceSynchronize"] - 1)
    return counts


def launches(found: Any) -> int:
    """Kernels that the GPU ran; an AssertionError where the profiler saw none."""
    names = [event.name for event in _on_gpu(found)]
    made = sum(not name.startswith(("Memcpy", "Memset")) for name in names)
    assert made, "the profiler saw no kernel on the GPU"
    return made


def _on_gpu(found: Any) -> list[Any]:
    # Not the ranges that torch itself marks, such as an optimizer's step: their kernels are there, too.
    events = [event for event in found.events() if event.device_type == DeviceType.CUDA]
    return [event for event in events if not getattr(event, "is_user_annotation", False)]


def kernels(found: Any, most: int = 15) -> list[tuple[str, float, int]]:
    """Name, milliseconds and calls of the kernels that took the longest; without a GPU of the operations."""
    times: dict[str, list[float]] = defaultdict(list)
    for event in _on_gpu(found):
        times[event.name].append(event.time_range.elapsed_us() / 1000)
    if not times:
        for event in found.events():
            if event.name.startswith("aten::"):
                times[event.name].append(event.self_cpu_time_total / 1000)
    order = sorted(times, key=lambda name: -sum(times[name]))[:most]
    return [(name, sum(times[name]), len(times[name])) for name in order]


class Phases:
    """Milliseconds of the phases of steps: of the device on a GPU, of the host elsewhere."""

    def __init__(self, run: Run) -> None:
        self._on_gpu = run.device.type == "cuda"
        self._marks: list[tuple[str, Any, Any]] = []
        self._owners: dict[str, tuple[Any, str]] = {
            "augmentation": (run.augment, "forward"),
            "forward": (loop, "forward"),
            "loss and numbers": (loop, "compare"),
            "backward": (torch.Tensor, "backward"),
            "clip": (loop, "clip_gradients"),
            "optimizer": (run.optimizer, "step"),
            "teacher": (run.teacher, "update"),
        }

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, each phase is timed."""
        with ExitStack() as stack:
            for name, (owner, attribute) in self._owners.items():
                watched = self._watched(name, getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, watched))
            yield

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = self._mark()
            try:
                return function(*args, **kwargs)
            finally:
                self._marks.append((name, began, self._mark()))

        return call

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def times(self) -> dict[str, list[float]]:
        """By phase, of each time that it happened."""
        found: dict[str, list[float]] = {}
        if self._on_gpu:
            torch.cuda.synchronize()
        for name, began, ended in self._marks:
            taken = began.elapsed_time(ended) if self._on_gpu else 1000 * (ended - began)
            found.setdefault(name, []).append(taken)
        return found
