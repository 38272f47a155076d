"""Whether a spec fits into a machine, told before anything of it is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from dino_lab.errors import Misfit, UserError
from dino_lab.protocols import Augment
from dino_lab.spec.model import Spec

if TYPE_CHECKING:
    from dino_lab.building.components import Method

MOST_LAYERS = 20_000  # modules and parameters of one part; the largest models of timm have a few thousand
MOST_PIXELS = 65_536  # of a side of a crop
MOST_EPOCHS = 10**9
BYTES = 4  # of a float32
CHANNELS = 3


@contextmanager
def few_layers() -> Iterator[None]:
    """A UserError once a part that is being built has more layers than any network that could be trained."""
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > MOST_LAYERS:
            raise UserError(f"more than {MOST_LAYERS:,} layers and parameters; no network has so many")

    with ExitStack() as hooks:
        hooks.callback(register_module_module_registration_hook(counted).remove)
        hooks.callback(register_module_parameter_registration_hook(counted).remove)
        yield


def check_length(spec: Spec) -> None:
    """A Misfit where a run would not end."""
    if spec.train.epochs > MOST_EPOCHS:
        raise Misfit(("train", "epochs"), f"must be at most {MOST_EPOCHS:,}, got {spec.train.epochs:,}")


def check_crops(augment: Augment) -> None:
    """A Misfit where crops are larger than any image, so that torch cannot count their pixels."""
    for _, pixels in augment.groups:
        if pixels > MOST_PIXELS:
            raise Misfit(("augment",), f"crops of {pixels:,} px a side; at most {MOST_PIXELS:,}")


def check_memory(spec: Spec, method: Method) -> None:
    """A Misfit where the weights, or the crops and outputs of one step, are larger than the memory.

    It is a bound from below: gradients, activations and the optimizer's state come on top of it.
    """
    parts = {
        ("backbone",): method.student.backbone,
        ("head",): method.student.head,
        ("predictor",): method.student.predictor,
        ("token_head",): method.student.token_head,
        ("teacher",): method.teacher,
        ("targets",): method.targets,
        ("loss",): method.loss,
    }
    seen: set[int] = set()
    sizes: dict[tuple[str, ...], int] = {loc: _bytes_of(part, seen) for loc, part in parts.items()}
    _check_total(sizes, "the weights take")
    views = sum(number for number, _ in method.augment.groups)
    pixels = sum(number * size**2 for number, size in method.augment.groups)
    images = -(-spec.train.batch_size // spec.train.accumulate)
    outputs: Any = method.student.head.dim
    numbers = images * (pixels * CHANNELS + views * int(outputs))
    _check_total({("train", "batch_size"): BYTES * numbers}, "the crops and outputs of a step take")


def _bytes_of(part: Any, seen: set[int]) -> int:
    """Bytes of the tensors of a module that were not seen before."""
    if not isinstance(part, nn.Module):
        return 0
    tensors = [t for t in (*part.parameters(), *part.buffers()) if id(t) not in seen]
    seen.update(map(id, tensors))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _check_total(sizes: dict[tuple[str, ...], int], what: str) -> None:
    total = sum(sizes.values())
    if total > psutil.virtual_memory().total and total > (memory := _memory()):
        # The first of the large ones: a teacher that is a copy is as large as what it copies.
        largest = next(loc for loc, size in sizes.items() if 2 * size >= max(sizes.values()))
        has = f"this machine has {memory / 2**30:,.0f} GiB"
        raise Misfit(largest, f"{what} {total / 2**30:,.0f} GiB, and {has}")


def _memory() -> int:
    """Bytes of the main memory, or of the largest GPU."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return max(psutil.virtual_memory().total, *(gpu.total_memory for gpu in gpus), 0)
