"""Position embeddings of timm's vision transformers, interpolated as DINO's code does it."""

from __future__ import annotations

from types import MethodType
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

Positions = Annotated[
    Literal["timm", "dino"],
    Field(
        description="interpolation for other crops; timm: bicubic, antialiased; "
        "dino: bicubic, 0.1 patches longer"
    ),
]
OFFSET = 0.1  # patches


def interpolate_as_dino(model: nn.Module) -> None:
    """Change a model in place; a ValueError where it has other positions than timm's VisionTransformer."""
    from timm.models import VisionTransformer  # seconds to import, so not before it is needed

    plain = getattr(type(model), "_pos_embed", None) is VisionTransformer._pos_embed
    if (
        not plain
        or getattr(model, "pos_embed", None) is None
        or not getattr(model, "dynamic_img_size", False)
    ):
        raise ValueError(
            f"{type(model).__name__} does not interpolate position embeddings, so there is no positions: dino"
        )
    vars(model)["_pos_embed"] = MethodType(_with_positions, model)


def _with_positions(model: Any, patches: Tensor) -> Tensor:
    """Patches [N, h, w, D] to tokens [N, P, D] with class and register tokens and positions."""
    N, h, w, _ = patches.shape
    prefix = [token.expand(N, -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    tokens = patches.flatten(1, 2)
    if model.no_embed_class:
        tokens = torch.cat(
            [*prefix, tokens + _resized(model.pos_embed, model.patch_embed.grid_size, h, w)], 1
        )
    else:
        count = int(model.num_prefix_tokens)
        of_prefix, of_patches = model.pos_embed.split([count, model.pos_embed.shape[1] - count], 1)
        positions = torch.cat([of_prefix, _resized(of_patches, model.patch_embed.grid_size, h, w)], 1)
        tokens = torch.cat([*prefix, tokens], 1) + positions
    return model.pos_drop(tokens)


def _resized(positions: Tensor, grid: tuple[int, int], h: int, w: int) -> Tensor:
    """Positions [1, P, D] on a grid as those on h times w (`interpolate_pos_encoding` of DINO's code)."""
    if grid == (h, w):
        return positions
    plane = positions.float().mT.unflatten(2, grid)  # [1, D, *grid]
    scale = ((h + OFFSET) / grid[0], (w + OFFSET) / grid[1])
    return F.interpolate(plane, scale_factor=scale, mode="bicubic").flatten(2).mT.to(positions.dtype)
