"""Attention of timm's layers on a CPU: as products of matrices where torch's fused kernel is slower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Tokens up to which products are faster, forward and backward together. In bfloat16 the fused kernel's
# backward takes six to ten times as long for crops of 17 to 65 tokens. Beyond, weights take much memory.
MOST_TOKENS = {torch.float32: 96, torch.bfloat16: 320}


def choose_attention(model: nn.Module) -> None:
    """Let every attention layer of timm choose anew for each input."""
    for module in model.modules():
        if getattr(module, "fused_attn", False):  # what timm itself, or its user, has not turned off
            module.register_forward_pre_hook(_choose)


def products_pay(x: Tensor) -> bool:
    """Whether attention among tokens [N, tokens, D] is faster as products of matrices."""
    if x.device.type != "cpu" or x.ndim != 3:
        return False
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    return x.shape[1] <= MOST_TOKENS.get(dtype, 0)


def _choose(layer: Any, inputs: tuple[Any, ...]) -> None:
    fused = not products_pay(inputs[0])
    if layer.fused_attn != fused:  # a compiled network would look at every change
        layer.fused_attn = fused
