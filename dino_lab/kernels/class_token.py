"""Features of timm's vision transformers without what nobody reads of the last block.

Where features are the CLS token, the last block's queries, projection and MLP are of use for that token
alone. Images of several sizes may go through the blocks at once: their tokens are rows of one matrix, which
only attention takes apart, so that a GPU gets one launch where it would get one for each size. The result is
that of the whole model, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dino_lab.kernels.attention import products_pay
from dino_lab.kernels.linear import linear

Shapes = list[tuple[int, int]]  # images of one size, and tokens of each


def features_are_class_token(model: nn.Module) -> bool:
    """Whether `class_token_features` gives what the model gives."""
    from timm.models import VisionTransformer  # seconds to import, so not before it is needed

    if type(model) is not VisionTransformer or model.global_pool != "token" or model.attn_pool is not None:
        return False
    return _is_plain(model.blocks[-1])


def _is_plain(block: Any) -> bool:
    attention: Any = getattr(block, "attn", None)
    plain = (type(block).__name__, type(attention).__name__) == ("Block", "Attention")
    return plain and getattr(attention, "gate", None) is None and isinstance(attention.attn_drop, nn.Dropout)


def class_token_features(model: Any, images: Tensor) -> Tensor:
    """[N, C, H, W] to [N, D]."""
    x = _placed(model, model.patch_embed(images))
    *blocks, last = model.blocks
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if model.grad_checkpointing else block(x)
    return model.forward_head(model.norm(_of_class_token(last, x)))


def class_token_features_of_sizes(model: Any, images: Sequence[Tensor]) -> Tensor:
    """Images of several sizes, each [N, C, H, W], to the features [M, D] of all M of them.

    Stochastic depth draws its numbers for all blocks and images at once, others than `class_token_features`.
    """
    if not all(map(_is_plain, model.blocks)):
        return torch.cat([class_token_features(model, group) for group in images])
    patches = [model.patch_embed(group) for group in images]  # of the type that branches have, too
    groups = [_placed(model, each) for each in patches]
    shapes = [(group.shape[0], group.shape[1]) for group in groups]
    x = torch.cat([group.flatten(0, 1) for group in groups])  # [tokens, D]
    scales = _path_scales(model.blocks, sum(N for N, _ in shapes), x.device)
    of_tokens = _of_tokens(scales, shapes, patches[0].dtype)
    *blocks, last = model.blocks
    for i, block in enumerate(blocks):
        arguments = (block, x, shapes, of_tokens.get(2 * i), of_tokens.get(2 * i + 1))
        if model.grad_checkpointing:
            x = checkpoint(_block, *arguments, use_reentrant=False)
        else:
            x = _block(*arguments)
    token = _last_block(last, x, shapes, scales.get(2 * len(blocks)), scales.get(2 * len(blocks) + 1))
    return model.forward_head(model.norm(token[:, None]))


def _placed(model: Any, patches: Tensor) -> Tensor:
    """Embedded patches to all tokens [N, P, D], with their places."""
    return model.norm_pre(model.patch_drop(model._pos_embed(patches)))


def _of_class_token(block: Any, x: Tensor) -> Tensor:
    """Tokens [N, P, D] to the CLS token [N, 1, D] after the block."""
    token = x[:, :1] + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x))))
    return token + block.drop_path2(block.ls2(block.mlp(block.norm2(token))))


def _attend(layer: Any, x: Tensor) -> Tensor:
    """Attention of the CLS token to all tokens [N, P, D], [N, 1, D]."""
    of_query, of_rest = _parts(layer)
    query = linear(x[:, :1], *of_query).unflatten(2, (1, layer.num_heads, -1))
    rest = linear(x, *of_rest).unflatten(2, (2, layer.num_heads, -1))  # [N, P, 2, heads, d]
    return _project(layer, _weighted(layer, x, *query.unbind(2), *rest.unbind(2)))


def _parts(layer: Any) -> tuple[tuple[Tensor, Tensor | None], tuple[Tensor, Tensor | None]]:
    """Weight and bias of the queries, and of keys and values."""
    width = layer.qkv.out_features // 3
    weight, bias = layer.qkv.weight, layer.qkv.bias
    of_query, of_rest = (None, None) if bias is None else (bias[:width], bias[width:])
    return (weight[:width], of_query), (weight[width:], of_rest)


def _weighted(layer: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Sums of values [N, P, heads, d] for queries [N, Q, heads, d] of x [N, P, D]; [N, Q, heads * d]."""
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))  # [N, heads, ., d]
    query, key = layer.q_norm(query), layer.k_norm(key)
    if products_pay(x):
        weights = (query * layer.scale @ key.mT).softmax(-1)  # [N, heads, Q, P]
        out = layer.attn_drop(weights) @ value
    else:
        dropout = layer.attn_drop.p if layer.training else 0.0
        out = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    return out.transpose(1, 2).flatten(2)


def _project(layer: Any, x: Tensor) -> Tensor:
    return layer.proj_drop(layer.proj(layer.norm(x)))


def _block(block: Any, x: Tensor, shapes: Shapes, path1: Tensor | None, path2: Tensor | None) -> Tensor:
    """Tokens of all images [tokens, D] after a block, whose branches count as much as the paths say."""
    layer = block.attn
    found = []
    for rows, (N, P) in zip(layer.qkv(block.norm1(x)).split(_rows(shapes)), shapes, strict=True):
        # [N, P, 3, heads, d]; taken apart here, so that the gradient is put together without a copy.
        parts = rows.view(N, P, 3, layer.num_heads, -1).unbind(2)
        found.append(_weighted(layer, rows.view(N, P, -1), *parts).flatten(0, 1))
    x = x + _scaled(block.ls1(_project(layer, torch.cat(found))), path1)
    return x + _scaled(block.ls2(block.mlp(block.norm2(x))), path2)


def _last_block(block: Any, x: Tensor, shapes: Shapes, path1: Tensor | None, path2: Tensor | None) -> Tensor:
    """Tokens of all images [tokens, D] to their CLS tokens [M, D] after the block."""
    layer, normed = block.attn, block.norm1(x)
    of_query, of_rest = _parts(layer)
    query = linear(_first(normed, shapes), *of_query)
    images = [N for N, _ in shapes]
    found = []
    for asking, rows, (N, P) in zip(
        query.split(images), linear(normed, *of_rest).split(_rows(shapes)), shapes, strict=True
    ):
        rest = rows.view(N, P, 2, layer.num_heads, -1).unbind(2)
        each = asking.view(N, 1, layer.num_heads, -1)
        found.append(_weighted(layer, rows.view(N, P, -1), each, *rest).flatten(0, 1))
    token = _first(x, shapes) + _scaled(block.ls1(_project(layer, torch.cat(found))), path1)
    return token + _scaled(block.ls2(block.mlp(block.norm2(token))), path2)


def _rows(shapes: Shapes) -> list[int]:
    return [N * P for N, P in shapes]


def _first(x: Tensor, shapes: Shapes) -> Tensor:
    """Of tokens [tokens, D] the first of each image, [M, D]."""
    groups = zip(x.split(_rows(shapes)), shapes, strict=True)
    return torch.cat([rows.view(N, P, -1)[:, 0] for rows, (N, P) in groups])


def _path_scales(blocks: Sequence[Any], images: int, device: torch.device) -> dict[int, Tensor]:
    """What stochastic depth multiplies branches by, [M], by the number of the branch, two for each block.

    A branch is kept with probability q and then divided by it (Huang et al., arXiv 1603.09382, Sec. 3, with
    the division in training rather than afterwards). Branches that are always kept are left out.
    """
    paths = [path for block in blocks for path in (block.drop_path1, block.drop_path2)]
    rates = [_rate(path) for path in paths]
    kept = {i: 1 - rate for i, rate in enumerate(rates) if rate > 0}
    if not kept:
        return {}
    uniform, shares = torch.rand(len(kept), images, device=device).unbind(), list(kept.values())
    # u + q is between q and 1 + q, and at least 1 with probability q.
    if torch.compiler.is_compiling():  # which makes one launch of operations that are no `_foreach`
        scales = [(u + q).floor() / q for u, q in zip(uniform, shares, strict=True)]
    else:
        scales = list(torch._foreach_div(torch._foreach_floor(torch._foreach_add(uniform, shares)), shares))
    return dict(zip(kept, scales, strict=True))


def _rate(path: Any) -> float:
    return float(getattr(path, "drop_prob", 0.0) or 0.0) if path.training else 0.0


def _of_tokens(scales: dict[int, Tensor], shapes: Shapes, dtype: torch.dtype) -> dict[int, Tensor]:
    """Numbers of each image [M] as numbers of each token [tokens]."""
    if not scales:
        return {}
    whole = torch.stack(list(scales.values())).to(dtype)  # [branches, M]
    groups = zip(whole.split([N for N, _ in shapes], 1), shapes, strict=True)
    each = torch.cat([part[:, :, None].expand(-1, N, P).flatten(1) for part, (N, P) in groups], 1)
    return dict(zip(scales, each.unbind(), strict=True))


def _scaled(branch: Tensor, path: Tensor | None) -> Tensor:
    """Rows [R, D] times their numbers [R]."""
    return branch if path is None else branch * path[:, None].to(branch.dtype)
