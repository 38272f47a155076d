"""Patch tokens and attention of timm's models, whatever attention kernel they run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from dino_lab.errors import UserError


def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """Patch tokens after the last norm, or the last feature map, [N, D, h, w], of images [N, C, H, W]."""
    out: Tensor = model.forward_features(images)  # type: ignore[operator]
    if out.ndim == 4:
        # A map already; some of timm's transformers have the channel last.
        return out if out.shape[1] == model.num_features else out.movedim(-1, 1)
    if _patch(model) is None or not hasattr(model, "num_prefix_tokens"):
        raise UserError(f"{type(model).__name__} gives no patch tokens")
    patches = out[:, _prefix(model) :]  # [N, h * w, D]
    return patches.transpose(1, 2).unflatten(2, _grid(model, images))


def attention(model: nn.Module, images: Tensor) -> Tensor:
    """Attention of the last block from CLS to the patches, [N, heads, h, w], without that to itself."""
    layer = _last_attention(model)
    seen: list[Tensor] = []
    # Fused kernels do not give their weights away, so they are computed again from the layer's input.
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.forward_features(images)  # type: ignore[operator]
    finally:
        handle.remove()
    query, key = _query_and_key(layer, seen[0])
    weights = (query[:, :, :1] @ key.transpose(-2, -1)).mul(layer.scale).softmax(-1)  # [N, heads, 1, tokens]
    return weights[:, :, 0, _prefix(model) :].unflatten(2, _grid(model, images))


def check_size(model: nn.Module, size: int) -> None:
    """ValueError where images of `size` pixels cannot be cut into the patches of `model`."""
    patch = _patch(model)
    if patch is not None and size % patch[0]:
        raise ValueError(f"{size} is not a multiple of patch {patch[0]}")


def _last_attention(model: nn.Module) -> Any:
    from timm.models import VisionTransformer  # seconds to import, so not before it is needed

    name = type(model).__name__
    if getattr(model, "cls_token", None) is None or not hasattr(model, "blocks"):
        raise UserError(
            f"{name} has no CLS token, so there is no attention from it; take a vision transformer"
        )
    layer = getattr(model.blocks[-1], "attn", None)  # type: ignore[index]
    # Position biases and rotations of other transformers are applied outside what is recomputed here.
    plain = isinstance(model, VisionTransformer) and type(layer).__name__ == "Attention"
    if not plain or _patch(model) is None:
        raise UserError(
            f"{name} has another attention than timm's VisionTransformer, so there is no map of it"
        )
    return layer


def _query_and_key(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    qkv = layer.qkv(x).unflatten(2, (3, layer.num_heads, -1))  # [N, tokens, 3, heads, d]
    query, key, _ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return layer.q_norm(query), layer.k_norm(key)


def _prefix(model: Any) -> int:
    return int(model.num_prefix_tokens)


def _patch(model: Any) -> tuple[int, ...] | None:
    """Height and width of a patch, where images are cut into patches that do not overlap."""
    embed = getattr(model, "patch_embed", None)
    cut = getattr(embed, "proj", None)
    # Where they overlap, timm's patch_size is that of the kernel, and any size of image will do. Hybrids cut
    # the feature map of a ConvNet.
    if not isinstance(cut, nn.Conv2d) or cut.stride != cut.kernel_size or hasattr(embed, "backbone"):
        return None
    return cut.stride


def _grid(model: nn.Module, images: Tensor) -> tuple[int, int]:
    patch = _patch(model)
    assert patch is not None, "asked of a model with patches only"
    return images.shape[-2] // patch[0], images.shape[-1] // patch[1]
