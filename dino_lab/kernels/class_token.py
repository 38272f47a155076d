"""Features of timm's vision transformers without what nobody reads of the last block.

Where features are the CLS token, the last block's queries, projection and MLP are of use for that token
alone. The result is that of the whole model, up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino_lab.kernels.attention import products_pay
from dino_lab.kernels.linear import linear


def features_are_class_token(model: nn.Module) -> bool:
    """Whether `class_token_features` gives what the model gives."""
    from timm.models import VisionTransformer  # seconds to import, so not before it is needed

    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return False
    block: Any = model.blocks[-1]
    attention = getattr(block, "attn", None)
    plain = (type(block).__name__, type(attention).__name__) == ("Block", "Attention")
    return plain and getattr(attention, "gate", None) is None and isinstance(attention.attn_drop, nn.Dropout)


def class_token_features(model: Any, images: Tensor) -> Tensor:
    """[N, C, H, W] to [N, D]."""
    x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    *blocks, last = model.blocks
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if model.grad_checkpointing else block(x)
    return model.forward_head(model.norm(_of_class_token(last, x)))


def _of_class_token(block: Any, x: Tensor) -> Tensor:
    """Tokens [N, P, D] to the CLS token [N, 1, D] after the block."""
    token = x[:, :1] + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x))))
    return token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))


def _attend(layer: Any, x: Tensor) -> Tensor:
    """Attention of the CLS token to all tokens [N, P, D], [N, 1, D]."""
    width = layer.qkv.out_features // 3
    weight, bias = layer.qkv.weight, layer.qkv.bias
    of_query, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
    query = linear(x[:, :1], weight[:width], of_query).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
    rest = linear(x, weight[width:], of_rest).unflatten(2, (2, layer.num_heads, -1))  # [N, P, 2, heads, d]
    key, value = rest.permute(2, 0, 3, 1, 4).unbind(0)
    query, key = layer.q_norm(query), layer.k_norm(key)
    if products_pay(x):
        weights = (query * layer.scale @ key.mT).softmax(-1)  # [N, heads, 1, P]
        out = layer.attn_drop(weights) @ value
    else:
        dropout = layer.attn_drop.p if layer.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    out = out.transpose(1, 2).flatten(2)  # [N, 1, heads * d]
    return layer.proj_drop(layer.proj(layer.norm(out)))
