"""Attention of timm's layers in bfloat16 on a CPU: as products of matrices.

The backward pass of torch's fused kernel takes six to ten times as long there, for crops of 17 to 65 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

MOST_TOKENS = 320  # beyond, the weights would take much memory


def choose_attention(model: nn.Module) -> None:
    """Let every attention layer of timm choose anew for each input."""
    for module in model.modules():
        if getattr(module, "fused_attn", False):  # what timm itself, or its user, has not turned off
            module.register_forward_pre_hook(_choose)


def products_pay(x: Tensor) -> bool:
    """Whether attention among tokens [N, tokens, D] is faster as products of matrices."""
    if x.device.type != "cpu" or x.ndim != 3 or x.shape[1] > MOST_TOKENS:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype == torch.bfloat16


def _choose(layer: Any, inputs: tuple[Any, ...]) -> None:
    fused = not products_pay(inputs[0])
    if layer.fused_attn != fused:  # a compiled network would look at every change
        layer.fused_attn = fused
