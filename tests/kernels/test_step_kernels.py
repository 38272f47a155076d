"""Triton's kernels of a training step: they compute what torch computes, and compile for GPUs; none is needed.

Triton's interpreter runs them on the CPU. It has to be chosen before Triton is imported, so the comparison is
made in one process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_resources import needs_triton, resources

DTYPES = {"float64": 1e-12, "float32": 2e-6, "bfloat16": 8e-3}  # largest relative difference
SHAPES = [(5, 2, 3, 2500), (2, 2, 2, 7), (3, 1, 1, 1024)]  # S, T, B, K


def naive(student: Tensor, target: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """DINO, arXiv 2104.14294, Eq. 3, pair by pair."""
    terms = [
        -(target[t, b] * (student[s, b] / temperature).log_softmax(0)).sum()
        for s, t in positive.nonzero().tolist()
        for b in range(student.shape[1])
    ]
    return torch.stack(terms).mean()


def cross_entropies() -> dict[str, float]:
    """Largest relative difference of value and gradient from `naive` in float64, by data type."""
    from dino_lab.kernels.cross_entropy import fused

    found: dict[str, float] = {}
    for name in DTYPES:
        for S, T, B, K in SHAPES:
            generator = torch.Generator().manual_seed(K)
            student = torch.randn(S, B, K, generator=generator).to(getattr(torch, name)).requires_grad_()
            dtype = torch.float64 if name == "float64" else torch.float32
            target = torch.randn(T, B, K, generator=generator).mul(3).softmax(-1).to(dtype)
            positive = ~torch.eye(S, T, dtype=torch.bool)
            exact = student.detach().double().requires_grad_()
            ours, theirs = (
                fused(student, target, positive, 0.125),
                naive(exact, target.double(), positive, 0.125),
            )
            (slope,) = torch.autograd.grad(3 * ours, student)
            (true_slope,) = torch.autograd.grad(3 * theirs, exact)
            value = abs(ours.item() / theirs.item() - 1)
            gradient = float((slope - true_slope).abs().max() / true_slope.abs().max())
            found[name] = max(found.get(name, 0.0), value, gradient)
    return found


def infinite() -> list[bool]:
    """Whether a logit that is no number, or infinite, makes the loss no number."""
    from dino_lab.kernels.cross_entropy import fused

    found = []
    for value in (float("nan"), float("inf")):
        student, target = torch.zeros(2, 1, 5), torch.full((1, 1, 5), 0.2)
        student[0, 0, 3] = value
        found.append(bool(fused(student, target, torch.ones(2, 1, dtype=torch.bool), 1.0).isfinite()))
    return found


def scaled() -> list[bool]:
    """Whether tensors of all kinds of size and layout are what their product is."""
    from dino_lab.kernels.scaling import fused

    tensors = [torch.randn(3, 4), torch.randn(40_000), torch.randn(()), torch.randn(16_384), torch.empty(0)]
    tensors.append(torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last))
    factors = torch.rand(len(tensors))
    wanted = [tensor * factor for tensor, factor in zip(tensors, factors, strict=True)]
    fused(tensors, factors)
    return [torch.equal(tensor, want) for tensor, want in zip(tensors, wanted, strict=True)]


def report() -> None:
    """All of it, as JSON."""
    print(json.dumps({"cross-entropy": cross_entropies(), "infinite": infinite(), "scaled": scaled()}))


@needs_triton
def test_kernels_compute_what_torch_computes() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_step_kernels import report; report()"
    command = [sys.executable, "-c", code, str(Path(__file__).parent)]
    found = json.loads(subprocess.check_output(command, env=environment, text=True))
    print(found)
    assert {name: found["cross-entropy"][name] <= most for name, most in DTYPES.items()} == dict.fromkeys(
        DTYPES, True
    )
    assert found["infinite"] == [False, False]
    assert found["scaled"] == [True] * 6


KERNELS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "cross_entropy_forward": (
        dict.fromkeys(["student", "target", "pairs", "losses", "normalizer", "mass"], "*fp32")
        | {"sharpness": "fp32"},
        {"S": 10, "T": 2},
    ),
    "cross_entropy_backward": (
        dict.fromkeys(["student", "target", "pairs", "normalizer", "mass", "scale", "gradient"], "*fp32")
        | {"sharpness": "fp32"},
        {"S": 10, "T": 2},
    ),
    "scale_tensors": (
        {"factors": "*fp32", "addresses": "*i64", "sizes": "*i64", "owners": "*i32", "parts": "*i32"},
        {"PART": 16_384},
    ),
}


@needs_triton
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compile_without_spills(name: str, capability: int, tmp_path: Path) -> None:
    import triton.language as tl

    from dino_lab.kernels import triton_step

    types, constants = KERNELS[name]
    kernel = getattr(triton_step, name)
    if "WIDE" in kernel.arg_names:
        constants = constants | {"WIDE": tl.float32}
    use = resources(kernel, types, constants, capability, tmp_path)
    assert use.registers <= 64  # of 65,536 of a multiprocessor: four programs of 256 threads at once
    assert use.spilled == 0
    assert use.shared <= 1024
