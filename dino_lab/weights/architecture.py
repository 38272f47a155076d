"""The backbone that weights belong to, found from their shapes, as a spec writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.weights.names import Named, Tensors

SIZE = 224  # pixels, where weights do not tell the size of the images
ROTARY_SIZE = 256  # the global crops of DINOv3, arXiv 2508.10104, Sec. 3.2
LARGEST_WIDTH, DEEPEST = 8192, 200
# Heads where they are not width / 64: ViT-H, -g and -G (arXiv 2010.11929, Table 1; 2106.04560, Table 2), and
# DINOv3's 7B (arXiv 2508.10104, Table 2).
_HEADS = {1280: 16, 1408: 16, 1664: 16}
_HEADS_OF_ROTARY = {4096: 32}
# ResNets by kind of block and blocks of each stage (arXiv 1512.03385, Table 1), and how timm calls them.
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}


@dataclass(frozen=True)
class Architecture:
    """A backbone as a spec has it, and the images that it was made for."""

    backbone: dict[str, Any]
    channels: int
    size: int  # pixels of a side


def architecture(weights: Named) -> Architecture:
    """The backbone of these weights; a UserError, which asks for it, where the shapes do not say it."""
    try:
        if "conv1.weight" in weights.tensors:
            return _resnet(weights)
        return _transformer(weights)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = f"there is no {error.args[0]}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{weights.source}: the shapes do not say which backbone it is ({reason}); name it: "
            "backbone: {name: timm, model: ...}"
        ) from None


def _transformer(weights: Named) -> Architecture:
    tensors = weights.tensors
    if "architecture" in weights.config:
        return _of_config(weights)
    projection = tensors["patch_embed.proj.weight"]
    width, channels, patch, across = _shape(projection, 4)
    depth = _depth(tensors)
    _check(width <= LARGEST_WIDTH and depth <= DEEPEST, f"width {width} and {depth} blocks are out of range")
    _check(patch == across, f"patches of {patch} x {across}")
    block = {name.removeprefix("blocks.0."): value for name, value in tensors.items()}
    _check(block["attn.qkv.weight"].shape == (3 * width, width), "attention of another width than the tokens")
    registers = _registers(tensors, width)
    arguments: dict[str, Any] = {
        **{"patch_size": patch, "embed_dim": width, "depth": depth},
        **{"num_heads": _heads(weights, width, block), **_mlp(block, width)},
    }
    if "ls1.gamma" in block:
        arguments["init_values"] = 1e-5
    if weights.rope is not None:
        return Architecture(_rotary(weights, block, arguments, registers), channels, ROTARY_SIZE)
    return Architecture(_absolute(weights, block, arguments, registers), channels, _size(weights, patch))


def _absolute(weights: Named, block: Tensors, arguments: dict[str, Any], registers: int) -> dict[str, Any]:
    """With one position embedding for each patch."""
    tensors = weights.tensors
    has_class = "cls_token" in tensors
    _check(
        "mlp.fc1_g.weight" not in block, "gates of the MLP are apart, which timm has for rotary ones alone"
    )
    packed = _is_packed(block)
    _check(not packed or "ls1.gamma" in block, "a gated MLP without LayerScale")
    if "attn.qkv.bias" not in block:
        arguments["qkv_bias"] = False
    for name, key in (("attn.q_norm.weight", "qk_norm"), ("norm_pre.weight", "pre_norm")):
        if name in (block if key == "qk_norm" else tensors):
            arguments[key] = True
    if registers:
        arguments["reg_tokens"] = registers
    if not has_class:
        arguments |= {"class_token": False, "global_pool": "avg", "fc_norm": "fc_norm.weight" in tensors}
    elif "fc_norm.weight" in tensors:
        arguments["global_pool"] = "avg"
    positions = tensors["pos_embed"].shape[1]
    if has_class and math.isqrt(positions) ** 2 == positions:
        arguments["no_embed_class"] = True
    model = "vit_giant_patch14_dinov2" if packed else "vit_base_patch16_224"
    backbone = {"name": "timm", "model": model, "arguments": arguments}
    return {**backbone, "positions": weights.positions} if weights.positions != "timm" else backbone


def _rotary(weights: Named, block: Tensors, arguments: dict[str, Any], registers: int) -> dict[str, Any]:
    """With rotary position embeddings, as DINOv3; features are the class token."""
    arguments |= {"num_reg_tokens": registers, "global_pool": "token", "rope_temperature": weights.rope}
    if "mlp.fc1_g.weight" in block:
        arguments |= {"swiglu_mlp": True, "swiglu_align_to": 1}
    biased = "_qkvb" if "attn.qkv.bias" in block else ""
    return {"name": "timm", "model": f"vit_base_patch16_dinov3{biased}", "arguments": arguments}


def _of_config(weights: Named) -> Architecture:
    """A folder of timm says its architecture."""
    config = weights.config
    given = config.get("pretrained_cfg", {})
    channels, size, _ = given.get("input_size", (3, SIZE, SIZE))
    arguments = {
        key: value
        for key, value in config.get("model_args", {}).items()
        if key not in ("img_size", "in_chans", "num_classes", "dynamic_img_size")
    }
    if "global_pool" in config:
        arguments["global_pool"] = config["global_pool"]
    return Architecture(
        {"name": "timm", "model": config["architecture"], "arguments": arguments}, int(channels), int(size)
    )


def _depth(tensors: Tensors) -> int:
    blocks = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,4})\.", name))}
    _check(blocks == set(range(len(blocks))) and bool(blocks), "some of its blocks are missing")
    return len(blocks)


def _heads(weights: Named, width: int, block: Tensors) -> int:
    if "attn.q_norm.weight" in block:
        return width // block["attn.q_norm.weight"].shape[0]
    usual = (_HEADS if weights.rope is None else _HEADS_OF_ROTARY).get(width)
    heads = weights.heads or usual or width // 64
    _check(
        heads > 0 and width % heads == 0 and bool(weights.heads or usual or width % 64 == 0),
        f"width {width} may have any number of heads",
    )
    return heads


def _is_packed(block: Tensors) -> bool:
    """Whether gate and value of the MLP are one projection, twice as wide as what comes out of them."""
    return bool(block["mlp.fc1.weight"].shape[0] == 2 * block["mlp.fc2.weight"].shape[1])


def _mlp(block: Tensors, width: int) -> dict[str, Any]:
    first = block["mlp.fc1_g.weight" if "mlp.fc1_g.weight" in block else "mlp.fc1.weight"]
    rows = _shape(first, 2)[0]
    # timm takes the hidden width as a ratio, and rounds down.
    return {} if rows == 4 * width else {"mlp_ratio": (rows + 0.5) / width if rows % width else rows // width}


def _registers(tensors: Tensors, width: int) -> int:
    if "reg_token" not in tensors:
        return 0
    _, count, its = _shape(tensors["reg_token"], 3)
    _check(its == width, "registers of another width than the tokens")
    return count


def _size(weights: Named, patch: int) -> int:
    """Pixels of a side of the images that the position embeddings are of."""
    positions = _shape(weights.tensors["pos_embed"], 3)[1]
    for prefix in (0, 1):
        side = math.isqrt(positions - prefix)
        if side**2 == positions - prefix and (prefix == 0 or "cls_token" in weights.tensors):
            return side * patch
    raise ValueError(f"{positions} position embeddings are no square")


def _resnet(weights: Named) -> Architecture:
    tensors = weights.tensors
    _, channels, kernel, _ = _shape(tensors["conv1.weight"], 4)
    layers = tuple(_blocks(tensors, stage) for stage in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in tensors
    arguments: dict[str, Any] = {}
    model = _RESNETS.get((bottleneck, layers))
    if model is None:
        model, arguments = ("resnet50" if bottleneck else "resnet18"), {"layers": list(layers)}
    if bottleneck:
        out, inside, _, _ = _shape(tensors["layer1.0.conv2.weight"], 4)
        cardinality = out // inside
        if cardinality > 1:
            arguments["cardinality"] = cardinality
        if out // cardinality != 64:
            arguments["base_width"] = out // cardinality
    backbone = {"name": "timm", "model": model, **({"arguments": arguments} if arguments else {})}
    if kernel == 3:
        return Architecture({**backbone, "stem": "small"}, channels, 32)
    _check(kernel == 7, f"its first convolution is {kernel} x {kernel}")
    return Architecture(backbone, channels, SIZE)


def _blocks(tensors: Tensors, stage: int) -> int:
    pattern = re.compile(rf"layer{stage}\.(\d{{1,4}})\.")
    found = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    _check(
        bool(found) and found == set(range(len(found))) and len(found) <= DEEPEST, f"layer{stage} has gaps"
    )
    return len(found)


def _shape(tensor: Tensor, dimensions: int) -> tuple[int, ...]:
    _check(tensor.ndim == dimensions and 0 not in tensor.shape, f"a tensor of shape {list(tensor.shape)}")
    return tuple(tensor.shape)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
