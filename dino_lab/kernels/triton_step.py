"""Parts of a training step on a GPU, compiled by Triton. Triton reads these functions itself.

No annotations in them but its own. Their callers are `cross_entropy` and `scaling`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cross_entropy_forward(
    student,  # [S, B, K]
    target,  # [T, B, K]
    pairs,  # float32 [S, T]: 1 where the two are compared
    losses,  # [S, B], written: the sum of the cross-entropies of a student's row
    normalizer,  # [S, B], written: log of the sum of the exponentials of the row's logits
    mass,  # [S, B], written: the sum of the targets that the row is compared with
    B,
    K,
    sharpness,  # 1 / temperature
    S: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,  # float64 or float32, of what is added up
    BLOCK: tl.constexpr,
):
    """One row of the student: the logsumexp in one pass, each block scaled to the largest so far."""
    s, b = tl.program_id(0) % S, tl.program_id(0) // S  # neighbours read the same targets
    row = student + (s * B + b).to(tl.int64) * K
    largest = tl.full([BLOCK], -float("inf"), WIDE)
    total, matched, weight = tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE), tl.zeros([BLOCK], WIDE)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        logit = tl.load(row + k, mask=k < K, other=-float("inf")).to(WIDE) * sharpness
        now = tl.maximum(largest, logit)
        # Where nothing but -inf was seen the difference of two infinities would be no number.
        safe = tl.where(now == -float("inf"), 0.0, now)
        total = total * tl.exp(largest - safe) + tl.exp(logit - safe)
        largest = now
        for t in tl.static_range(T):
            asked = tl.load(pairs + s * T + t)
            if asked != 0:
                q = tl.load(target + (t * B + b).to(tl.int64) * K + k, mask=k < K, other=0.0).to(WIDE)
                matched += q * tl.where(k < K, logit, 0.0)
                weight += q
    top = tl.max(largest)
    log_total = top + tl.log(tl.sum(total * tl.exp(largest - top)))
    everything = tl.sum(weight)
    at = s * B + b
    tl.store(losses + at, everything * log_total - tl.sum(matched))
    tl.store(normalizer + at, log_total)
    tl.store(mass + at, everything)


@triton.jit
def cross_entropy_backward(
    student,  # [S, B, K]
    target,  # [T, B, K]
    pairs,  # float32 [S, T]
    normalizer,  # [S, B]
    mass,  # [S, B]
    scale,  # [1]: what the gradient of each row's loss is multiplied by
    gradient,  # [S, B, K], written
    B,
    K,
    sharpness,
    S: tl.constexpr,
    T: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of a row: (mass * softmax - sum of the targets) * scale / temperature."""
    s, b = tl.program_id(0) % S, tl.program_id(0) // S
    at = s * B + b
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logit = tl.load(student + at.to(tl.int64) * K + k, mask=k < K, other=0.0).to(WIDE) * sharpness
    slope = tl.load(mass + at) * tl.exp(logit - tl.load(normalizer + at))
    for t in tl.static_range(T):
        asked = tl.load(pairs + s * T + t)
        if asked != 0:
            slope -= tl.load(target + (t * B + b).to(tl.int64) * K + k, mask=k < K, other=0.0).to(WIDE)
    slope = slope * tl.load(scale).to(WIDE) * sharpness
    tl.store(gradient + at.to(tl.int64) * K + k, slope, mask=k < K)


@triton.jit
def scale_tensors(
    factors,  # float32 [P]
    addresses,  # int64 [P], of float32 tensors
    sizes,  # int64 [P]
    owners,  # int32 [programs]: which tensor
    parts,  # int32 [programs]: which of its parts of PART numbers
    PART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply a part of one of many tensors by the factor of that tensor."""
    owner = tl.load(owners + tl.program_id(0))
    first = tl.load(parts + tl.program_id(0)).to(tl.int64) * PART
    tensor = tl.load(addresses + owner).to(tl.pointer_type(tl.float32))
    size, factor = tl.load(sizes + owner), tl.load(factors + owner)
    for start in range(0, PART, BLOCK):
        at = first + start + tl.arange(0, BLOCK)
        tl.store(tensor + at, tl.load(tensor + at, mask=at < size, other=0.0) * factor, mask=at < size)
