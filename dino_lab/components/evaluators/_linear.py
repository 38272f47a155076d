"""Linear classifiers trained by gradient descent, one for each of many learning rates, all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.9
INITIAL_STD = 0.01
REFERENCE_BATCH = 256  # learning rates are for a batch of this size


def train_heads(
    features: Tensor, labels: Tensor, classes: int, rates: Sequence[float], epochs: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Weights [R, D, classes] and biases [R, classes] after SGD on the cross-entropy of features [N, D].

    DINO, arXiv 2104.14294, appendix F.2; many rates at once after DINOv2, arXiv 2304.07193. Momentum 0.9, no
    weight decay, a cosine to 0 over all steps, rates times batch / 256. All start from the same weights and
    see the same batches: a new order every epoch, the last batch of which may be smaller.
    """
    images, D = features.shape
    R, batch = len(rates), min(batch, images)
    generator = torch.Generator().manual_seed(seed)
    start = INITIAL_STD * torch.randn(D, 1, classes, generator=generator, dtype=features.dtype)
    # [D, R, classes], so that one product serves all rates.
    weight = start.to(features.device).repeat(1, R, 1)
    bias = weight.new_zeros(R, classes)
    weight_step, bias_step = torch.zeros_like(weight), torch.zeros_like(bias)
    rate = weight.new_tensor(rates)[:, None] * batch / REFERENCE_BATCH  # [R, 1]
    steps, step = epochs * math.ceil(images / batch), 0
    for _ in range(epochs):
        order = torch.randperm(images, generator=generator).to(features.device)
        for rows in order.split(batch):
            x = features[rows]
            slope = (x @ weight.flatten(1)).view(-1, R, classes).add_(bias).softmax(-1)
            slope[torch.arange(len(rows), device=x.device), :, labels[rows]] -= 1  # of the loss by the logits
            slope /= len(rows)
            now = rate * (0.5 * (1 + math.cos(math.pi * step / steps)))
            weight_step.mul_(MOMENTUM).add_((x.T @ slope.flatten(1)).view_as(weight))
            bias_step.mul_(MOMENTUM).add_(slope.sum(0))
            weight -= now * weight_step
            bias -= now * bias_step
            step += 1
    return weight.transpose(0, 1).contiguous(), bias
