"""Linear layers on a CPU, by the faster of torch's two libraries.

torch gives products of float32 matrices to MKL, which on AMD's processors does not use AVX-512, and
convolutions to oneDNN, which does: there a linear layer takes half the time if it is computed as a
convolution of one pixel. The numbers are the same up to rounding.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST = 10_000_000  # multiplications from which it is faster


class FasterLinear(nn.Linear):
    """The same layer by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x [..., in] times weight [out, in], transposed, plus bias [out]."""
    if not _convolution_pays(x, weight):
        return F.linear(x, weight, bias)
    columns = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # [1, in, rows, 1], channel last in memory
    # Of one pixel a dilation changes nothing. Without it torch takes its own, slow convolution where it has
    # one thread and fewer than 16 images (aten/src/ATen/native/Convolution.cpp, use_mkldnn).
    y = F.conv2d(columns, weight[:, :, None, None], bias, dilation=2)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def use_faster_linear(part: nn.Module, device: torch.device) -> None:
    """Let every plain linear layer of what is computed on a device take the faster way, if that is a CPU."""
    if device.type == "cpu" and mkl_lags():
        for module in part.modules():
            if type(module) is nn.Linear:
                module.__class__ = FasterLinear


@cache
def mkl_lags() -> bool:
    """Whether this is a processor on which oneDNN multiplies float32 faster than MKL does."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and _is_amd()


def _is_amd() -> bool:
    file = Path("/proc/cpuinfo")  # other systems do not tell
    return file.exists() and "AuthenticAMD" in file.read_text()


def _convolution_pays(x: Tensor, weight: Tensor) -> bool:
    if torch._C._get_tracing_state() is not None or torch.compiler.is_compiling():
        return False  # what is exported or compiled is a linear layer
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LEAST
        and mkl_lags()
        and not torch.is_autocast_enabled("cpu")  # then it is bfloat16, which oneDNN multiplies anyway
    )
