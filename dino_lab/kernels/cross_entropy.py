"""Cross-entropy of paired views, in few passes over the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dino_lab.kernels import gpu


def cross_entropy(student: Tensor, target: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """-sum_k target_k log softmax(student / temperature)_k; student [S, B, K], target [T, B, K], to a scalar.

    The mean over the B samples and the pairs of views where `positive` [S, T] is not 0.
    """
    if gpu.runs_triton(student.device) and not target.requires_grad:
        return fused(student, target, positive, temperature)
    logits = student / temperature
    # log softmax = logits - logsumexp, so no second tensor of S x B x K is made.
    match = torch.einsum("sbk,tbk->st", logits, target)
    norm = torch.einsum("sb,tb->st", logits.logsumexp(-1), target.sum(-1))
    positive = (positive != 0).to(match.dtype)
    return ((norm - match) * positive).sum() / (positive.sum() * student.shape[1])


def fused(student: Tensor, target: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """As `cross_entropy`, by two of Triton's kernels: outputs and targets are read twice.

    The gradient is written once, and nothing else of S x B x K; there is none for the target.
    """
    loss: Tensor = _Fused.apply(student.contiguous(), target.contiguous(), positive, temperature)
    return loss


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, target: Tensor, positive: Tensor, temperature: float) -> Tensor:
        from dino_lab.kernels import triton_step

        S, B, K = student.shape
        pairs = (positive != 0).float().contiguous()
        wide = torch.promote_types(student.dtype, torch.float32)
        losses, normalizer, mass = torch.empty(3, S, B, dtype=wide, device=student.device)
        read = (student, target, pairs)
        written = (losses, normalizer, mass)
        gpu.launch(
            triton_step.cross_entropy_forward,
            (S * B,),
            *(*read, *written, B, K, 1 / temperature),
            **_constants(student, target),
        )
        share = 1 / (pairs.sum(dtype=wide) * B)  # of a pair of rows
        ctx.save_for_backward(*read, normalizer, mass, share)
        ctx.temperature = temperature
        return losses.sum() * share

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        from dino_lab.kernels import triton_step

        student, target, pairs, normalizer, mass, share = ctx.saved_tensors
        S, B, K = student.shape
        scale = (gradients[0] * share).reshape(1)
        gradient = torch.empty_like(student)
        gpu.launch(
            triton_step.cross_entropy_backward,
            (S * B, -(-K // gpu.BLOCK)),
            *(student, target, pairs, normalizer, mass, scale, gradient, B, K, 1 / ctx.temperature),
            **_constants(student, target),
        )
        return gradient, None, None, None


def _constants(student: Tensor, target: Tensor) -> dict[str, Any]:
    import triton.language as tl

    wide = tl.float64 if student.dtype == torch.float64 else tl.float32
    return {"S": len(student), "T": len(target), "WIDE": wide}
