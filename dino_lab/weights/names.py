"""Tensors of a backbone under the names that timm's vision transformers and ResNets have.

Names of other authors are public facts of their code: DINO, iBOT and MoCo v3 name as timm does; DINOv2 (arXiv
2304.07193) and DINOv3 (arXiv 2508.10104) add registers, chunks of blocks and gated MLPs; MAE has a decoder
beside; Hugging Face's models and torchvision's have names of their own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.weights.file import Content
from dino_lab.weights.layout import Found, Of, find_backbone

Tensors = dict[str, Tensor]
# What is of use while pre-training only, or a classifier: no part of a backbone.
_NO_BACKBONE = re.compile(
    r"(mask_token|masked_embed|head|head_dist|fc|decoder_\w+|decoder|pooler|local_cls_norm|projectors?|predictor|"
    r"dino_head|ibot_head|rope_embed|rope|embeddings\.mask_token|classifier|heads|lm_head)(\.|$)"
)


@dataclass(frozen=True)
class Named:
    """A backbone's tensors by timm's names, and what is known of the backbone beside the shapes."""

    source: str
    prefix: str  # of the names in the file
    tensors: Tensors
    left_out: tuple[str, ...]  # whole names in the file of what is no part of the backbone
    heads: int | None = None
    rope: float | None = None  # temperature of a rotary position embedding
    positions: str = "timm"  # how its authors interpolate position embeddings
    config: dict[str, Any] = field(default_factory=dict)  # of a folder of timm or Hugging Face


def named(content: Content, of: Of | None = None) -> Named:
    """The backbone of a file by timm's names; a UserError where it is not known what is one."""
    found = find_backbone(content, of)
    kept = {name: value for name, value in found.tensors.items() if not _NO_BACKBONE.match(name)}
    dropped = [f"{found.prefix}{name}" for name in found.tensors.keys() - kept.keys()]
    try:
        tensors = _RENAMED[found.family](kept)
    except KeyError as error:
        raise UserError(
            f"{content.source}: its backbone has no {error.args[0]}; the file is incomplete"
        ) from None
    except RuntimeError as error:
        raise UserError(f"{content.source}: shapes of its backbone do not go together ({error})") from None
    of_v2 = "mask_token" in found.tensors and "blocks.0.ls1.gamma" in tensors
    of_dino = any("head.last_layer.weight" in name for name in content.tensors)
    interpolated_as_dino = (of_v2 and "reg_token" not in tensors) or (of_dino and not of_v2)
    return Named(
        content.source,
        found.prefix,
        tensors,
        (*found.others, *sorted(dropped)),
        heads=_heads(content, found),
        rope=_rope(content, found),
        positions="dino" if interpolated_as_dino and "pos_embed" in tensors else "timm",
        config=content.config,
    )


def _heads(content: Content, found: Found) -> int | None:
    """Attention heads, where something beside the shapes says how many."""
    given = content.config.get("num_attention_heads")
    if isinstance(given, int) and given > 0:
        return given
    of_moco = re.search(r"(^|\.)(base|momentum)_encoder\.$", found.prefix)
    if of_moco and found.family == "timm":
        return 12  # of its ViT-S and ViT-B alike: MoCo v3, arXiv 2104.02057, Sec. 5
    return None


def _rope(content: Content, found: Found) -> float | None:
    """The temperature b of rotary position embeddings, whose n periods are b^(2i/2n) (DINOv3, Sec. 3.2)."""
    periods = found.tensors.get("rope_embed.periods")
    if periods is not None and periods.ndim == 1 and len(periods) > 1 and bool((periods > 0).all()):
        ratio = float(periods[-1].double() / periods[0].double())
        return float(f"{ratio ** (len(periods) / (len(periods) - 1)):.2g}")
    given = content.config.get("rope_theta")
    if isinstance(given, int | float):
        return float(given)
    rotary = "pos_embed" not in found.tensors and any(
        re.search(r"(^|\.)(storage_tokens|reg_token|embeddings\.register_tokens)$", name)
        for name in found.tensors
    )
    absolute = any("position_embeddings" in name for name in found.tensors)
    return 100.0 if rotary and not absolute else None


def _as_timm(tensors: Tensors) -> Tensors:
    """Of DINO, iBOT, DINOv2, DINOv3, MAE, MoCo v3 and timm itself."""
    # DINOv2 keeps blocks in chunks, each with the number that a block has in the whole network.
    renamed = {
        re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): value for name, value in tensors.items()
    }
    renamed = {
        re.sub(r"^(register_tokens|storage_tokens)$", "reg_token", name): value
        for name, value in renamed.items()
    }
    renamed = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): value for name, value in renamed.items()}
    gated = {"w12": "fc1", "w3": "fc2"} if any(".mlp.w12." in name for name in renamed) else _GATED
    renamed = _replaced(renamed, r"\.mlp\.(w12|w1|w2|w3)\.", lambda old: f".mlp.{gated.get(old, old)}.")
    return _with_class_position(_with_qkv_bias(renamed))


_GATED = {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2"}


def _replaced(tensors: Tensors, pattern: str, new: Callable[[str], str]) -> Tensors:
    return {re.sub(pattern, lambda match: new(match[1]), name): value for name, value in tensors.items()}


def _with_qkv_bias(tensors: Tensors) -> Tensors:
    """One bias for query, key and value; that of the key is masked in DINOv3, and missing in timm's Eva."""
    renamed: Tensors = {}
    for name, value in tensors.items():
        if name.endswith(".attn.qkv.bias_mask") or name.endswith((".attn.v_bias", ".attn.k_bias")):
            continue
        if name.endswith(".attn.q_bias"):
            v = tensors[name.replace("q_bias", "v_bias")]
            renamed[name.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), v])
        elif name.endswith(".attn.qkv.bias") and f"{name}_mask" in tensors:
            renamed[name] = value.clone()
            renamed[name].unflatten(0, (3, -1))[1] = 0
        else:
            renamed[name] = value
    return renamed


def _with_class_position(tensors: Tensors) -> Tensors:
    """DINOv2 with registers: the class token's position becomes part of the token, as in timm."""
    positions, registers = tensors.get("pos_embed"), tensors.get("reg_token")
    if positions is None or registers is None or "cls_token" not in tensors or positions.ndim != 3:
        return tensors
    if math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]:
        return tensors  # timm's: positions of patches alone
    return tensors | {
        "cls_token": tensors["cls_token"] + positions[:, :1],
        "pos_embed": positions[:, 1:],
    }


def _of_hugging_face(tensors: Tensors) -> Tensors:
    """Of ViTModel, ViTMAEModel, Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel."""
    renamed = {_hugging_face_name(name): value for name, value in tensors.items()}
    for i in sorted({int(m[1]) for name in renamed if (m := re.match(r"blocks\.(\d+)\.", name))}):
        _join_qkv(renamed, f"blocks.{i}.attn.")
    return _with_class_position(renamed)


_HUGGING_FACE = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.patch_embeddings\.(projection\.)?(weight|bias)$", r"patch_embed.proj.\2"),
    (r"^layernorm\.", "norm."),
    (r"^(?:encoder\.|model\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:attention\.)?(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(?:output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.mlp\.(?:weights_in)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:weights_out|down_proj)\.", ".mlp.fc2."),
    (r"\.mlp\.gate_proj\.", ".mlp.fc1_g."),
)


def _hugging_face_name(name: str) -> str:
    for pattern, new in _HUGGING_FACE:
        name = re.sub(pattern, new, name)
    return name


def _join_qkv(tensors: Tensors, layer: str) -> None:
    """Three projections as one, in place; a bias that one of them lacks is 0."""
    names = ("query", "key", "value") if f"{layer}query.weight" in tensors else ("q", "k", "v")
    weights = [tensors.pop(f"{layer}{name}.weight") for name in names]
    biases = [tensors.pop(f"{layer}{name}.bias", None) for name in names]
    tensors[f"{layer}qkv.weight"] = torch.cat(weights)
    if any(bias is not None for bias in biases):
        tensors[f"{layer}qkv.bias"] = torch.cat(
            [
                weight.new_zeros(len(weight)) if bias is None else bias
                for weight, bias in zip(weights, biases, strict=True)
            ]
        )
    block = layer.removesuffix("attn.")
    gated = f"{block}mlp.fc1_g.weight" in tensors
    for part in ("weight", "bias"):
        if (up := tensors.pop(f"{block}mlp.up_proj.{part}", None)) is not None:
            tensors[f"{block}mlp.fc1_x.{part}" if gated else f"{block}mlp.fc1.{part}"] = up


_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:3|linear_2)\.", ".mlp.fc2."),
)


def _of_torchvision(tensors: Tensors) -> Tensors:
    """Of torchvision's VisionTransformer."""
    renamed: Tensors = {}
    for name, value in tensors.items():
        for pattern, new in _TORCHVISION:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _of_sequential(tensors: Tensors) -> Tensors:
    """Of a ResNet's children in a row, as lightly's examples keep them."""
    return _replaced(tensors, r"^(\d+)(?=\.)", lambda old: _CHILDREN.get(old, old))


_RENAMED: dict[str, Callable[[Tensors], Tensors]] = {
    "timm": _as_timm,
    "hugging face": _of_hugging_face,
    "torchvision": _of_torchvision,
    "resnet": dict,
    "sequential resnet": _of_sequential,
}
