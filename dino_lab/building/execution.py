"""How networks are computed: memory format, precision, faster layers, batch norm over several processes.

Results change by rounding only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from dino_lab import collectives
from dino_lab.building.check import checkpoint_gradients
from dino_lab.building.compiled_libraries import remove_unfinished
from dino_lab.errors import UserError
from dino_lab.kernels import gpu
from dino_lab.kernels.batch_norm import synchronise_batch_norm
from dino_lab.kernels.convolution import use_one_position_convolution
from dino_lab.kernels.linear import use_faster_linear
from dino_lab.network import HEADS, Network
from dino_lab.spec.model import Train


def autocast(device: torch.device, settings: Train) -> torch.autocast:
    """The precision of the networks' matrix products, as a context.

    On a GPU, float32 is that of IEEE 754 unless it is tf32, from here on: backward passes lie outside the
    context. torch by itself rounds convolutions to TF32, and no other products.
    """
    if device.type == "cuda":
        use_tf32(settings.precision == "tf32")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")


def use_tf32(allowed: bool) -> None:
    """Let GPUs round the factors of float32 products to TF32, or not, from here on."""
    # torch's newer names for these make whoever reads the older ones fail (torch.export does).
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def arrange(network: nn.Module, settings: Train, device: torch.device) -> None:
    """The memory format, and layers that are faster or right on the device, for training and evaluation."""
    if settings.channels_last:
        network.to(memory_format=torch.channels_last)
    use_faster_linear(network, device)
    use_one_position_convolution(network, device)
    synchronise_batch_norm(network)


def arrange_training(network: Network, settings: Train, device: torch.device) -> None:
    """What only training needs: gradient checkpointing, weights rounded at once, and compilation."""
    # Where a batch is divided the parts of a network are called one by one.
    divided = settings.accumulate > 1 or collectives.processes() > 1
    if settings.precision == "bfloat16" and gpu.launches_take_time(device) and not divided:
        network.rounded_to = torch.bfloat16
    if settings.gradient_checkpointing:
        checkpoint_gradients(network)
    if settings.compile:
        _clean_compiled_libraries()
        parts = (network.backbone, *(getattr(network, name) for name in HEADS)) if divided else (network,)
        graphs = settings.compile == "graphs" and not divided
        for part in filter(None, parts):
            part.compile(mode="reduce-overhead" if graphs else "default")


@cache
def _clean_compiled_libraries() -> None:
    """Once in a process, before it compiles for the first time."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # takes seconds

    remove_unfinished(Path(cache_dir()))


def choose_device(text: str | None, place: int = 0, of: int = 1) -> torch.device:
    """The device that is asked for, or cuda where there is one; a UserError if torch cannot use it.

    Of several processes on a machine, that at `place` has the GPU of this number, unless the text names one
    for all of them, or each was shown one alone.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text in (None, "cuda") and count and of > 1:
        if 1 < count < of:
            raise UserError(
                f"this machine has {count} GPUs for {of} processes; --device cuda:0 lets them share one, "
                "--device cpu uses none"
            )
        return torch.device("cuda", place if count >= of else 0)
    if text is None:
        return torch.device("cuda" if count else "cpu")
    kind, _, index = text.partition(":")
    if text != "cpu" and (kind != "cuda" or (":" in text and not index.isdecimal())):
        raise UserError(f"--device {text}: should be cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= count:
        there = f"{count} CUDA device(s), counted from 0" if count else "no CUDA device that torch can use"
        raise UserError(f"--device {text}: this machine has {there}")
    return torch.device(text)
