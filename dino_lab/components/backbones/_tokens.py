"""Patch tokens and attention of timm's models, whatever attention kernel they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.errors import UserError
from dino_lab.types import BackboneOutput


def outputs(model: Any, images: Tensor, blocks: int) -> BackboneOutput:
    """Features and, where the model has them, CLS of the last `blocks`, tokens and attention; one forward.

    With `blocks` 0 features and tokens alone.
    """
    layer = None if not blocks or isinstance(found := _last_attention(model), str) else found
    out, seen, heard = _forward(model, images, layer, () if layer is None else model.blocks[-blocks:])
    return BackboneOutput(
        model.forward_head(out),
        torch.stack([model.norm(x)[:, 0] for x in reversed(seen)], 1) if layer else None,
        _patch_tokens(model, out, images),
        _weights(model, layer, *heard, images) if heard is not None else None,
    )


def tokens(model: Any, images: Tensor) -> Tensor:
    """Patch tokens after the last norm, or the last feature map, [N, D, h, w], of images [N, C, H, W]."""
    found = _patch_tokens(model, model.forward_features(images), images)
    if found is None:
        raise UserError(f"{type(model).__name__} gives no patch tokens")
    return found


def attention(model: Any, images: Tensor) -> Tensor:
    """Attention of the last block from CLS to the patches, [N, heads, h, w], without that to itself."""
    layer = _last_attention(model)
    if isinstance(layer, str):
        raise UserError(layer)
    heard = _forward(model, images, layer, ())[2]
    assert heard is not None, "the layer is part of the model"
    return _weights(model, layer, *heard, images)


Heard = tuple[Tensor, Tensor | None]  # what an attention layer gets: tokens [N, P, D], rotations [P', 2 d]


def _forward(
    model: Any, images: Tensor, layer: nn.Module | None, blocks: Iterable[nn.Module]
) -> tuple[Tensor, list[Tensor], Heard | None]:
    """What `forward_features` gives, the outputs of `blocks`, and the input of the attention layer."""
    seen: list[Tensor] = []
    heard: list[Heard] = []

    def hear(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        heard.append((inputs[0], named.get("rope")))

    hooks = [block.register_forward_hook(lambda *call: seen.append(call[2])) for block in blocks]
    if layer is not None:
        # Fused kernels do not give their weights away, so they are computed again from the layer's input.
        hooks.append(layer.register_forward_pre_hook(hear, with_kwargs=True))
    try:
        out: Tensor = model.forward_features(images)
    finally:
        for hook in hooks:
            hook.remove()
    return out, seen, heard[-1] if heard else None


def _patch_tokens(model: Any, out: Any, images: Tensor) -> Tensor | None:
    """[N, D, h, w] of what `forward_features` gives, or None where there are none, or several sets."""
    if not isinstance(out, Tensor):
        return None  # one of each scale (CoaT, EfficientViM), in forms that differ between models
    if out.ndim == 4:
        # A map already; some of timm's transformers have the channel last.
        return out if out.shape[1] == model.num_features else out.movedim(-1, 1)
    if _patch(model) is None or not hasattr(model, "num_prefix_tokens"):
        return None
    patches = out[:, _prefix(model) :]  # [N, h * w, D]
    return patches.transpose(1, 2).unflatten(2, _grid(model, images))


def _weights(model: Any, layer: Any, x: Tensor, rope: Tensor | None, images: Tensor) -> Tensor:
    """Attention [N, heads, h, w] from what the attention layer gets."""
    query, key = _query_and_key(layer, x)
    if rope is not None:  # the class token is not rotated, only keys of patches are
        from timm.layers import apply_rot_embed_cat

        before = _prefix(model)
        turned = apply_rot_embed_cat(key[:, :, before:], rope, half=layer.rotate_half)
        key = torch.cat([key[:, :, :before], turned], 2)
    weights = (query[:, :, :1] @ key.transpose(-2, -1)).mul(layer.scale).softmax(-1)  # [N, heads, 1, tokens]
    return weights[:, :, 0, _prefix(model) :].unflatten(2, _grid(model, images))


def check_size(model: nn.Module, size: int) -> None:
    """ValueError where images of `size` pixels cannot be cut into the patches of `model`."""
    patch = _patch(model)
    if patch is not None and size % patch[0]:
        raise ValueError(f"{size} is not a multiple of patch {patch[0]}")


def _last_attention(model: Any) -> Any:
    """The attention layer of the last block, or the reason why there is none."""
    from timm.models import Eva, VisionTransformer  # seconds to import, so not before it is needed

    name = type(model).__name__
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks"):
        return f"{name} has no CLS token, so there is no attention from it; take a vision transformer"
    layer = getattr(model.blocks[-1], "attn", None)
    # Position biases of other transformers are applied outside what is recomputed here.
    plain = isinstance(model, VisionTransformer) and type(layer).__name__ == "Attention"
    rotary = isinstance(model, Eva) and not model.rope_mixed and type(layer).__name__ == "EvaAttention"
    if not (plain or rotary) or _patch(model) is None:
        return f"{name} has another attention than timm's VisionTransformer, so there is no map of it"
    return layer


def _query_and_key(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys [N, heads, tokens, d], normalised but not rotated."""
    if layer.qkv is None:  # three projections
        query, key = (
            projection(x).unflatten(2, (layer.num_heads, -1)).transpose(1, 2)
            for projection in (layer.q_proj, layer.k_proj)
        )
        return layer.q_norm(query), layer.k_norm(key)
    qkv = layer.qkv(x)
    if getattr(layer, "q_bias", None) is not None:  # Eva's biases lie beside
        qkv = qkv + torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
    query, key, _ = qkv.unflatten(2, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return layer.q_norm(query), layer.k_norm(key)


def _prefix(model: Any) -> int:
    return int(model.num_prefix_tokens)


def _patch(model: Any) -> tuple[int, ...] | None:
    """Height and width of a patch, where images are cut into patches that do not overlap."""
    embed = getattr(model, "patch_embed", None)
    cut = getattr(embed, "proj", None)
    if isinstance(cut, conv_stem()):
        return embed.patch_size  # type: ignore[union-attr]
    # Where they overlap, timm's patch_size is that of the kernel, and any size of image will do. Hybrids cut
    # the feature map of a ConvNet.
    if not isinstance(cut, nn.Conv2d) or cut.stride != cut.kernel_size or hasattr(embed, "backbone"):
        return None
    return cut.stride


def conv_stem() -> type[nn.Sequential]:
    """Timm's stem of convolutions, which takes seconds to import."""
    from timm.models.vision_transformer_hybrid import ConvStem

    return ConvStem


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    patch = _patch(model)
    assert patch is not None, "asked of a model with patches only"
    return images.shape[-2] // patch[0], images.shape[-1] // patch[1]
