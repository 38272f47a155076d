"""A vision transformer from its papers alone, sum by sum, and its numbers under other projects' names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Numbers:
    """All weights of a transformer, by what the papers call them."""

    patch: int
    heads: int
    projection: tuple[Tensor, Tensor]  # [D, C, p, p], [D]
    cls: Tensor  # [D]
    registers: Tensor  # [R, D]
    cls_position: Tensor | None  # [D]
    positions: Tensor | None  # [N, D]
    blocks: list[dict[str, Tensor]]
    norm: tuple[Tensor, Tensor]
    eps: float = 1e-6
    base: float | None = None  # of rotary position embeddings
    extra: dict[str, Tensor] = field(default_factory=dict)


def numbers(
    width: int = 128,
    depth: int = 2,
    patch: int = 8,
    grid: int = 4,
    heads: int = 2,
    registers: int = 0,
    *,
    scaled: bool = False,
    gated: bool = False,
    rotary: bool = False,
    hidden: int | None = None,
    seed: int = 0,
) -> Numbers:
    """Random numbers, large enough that each of them is seen in the features."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 0.1, mean: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=generator) * std + mean

    hidden = hidden or 4 * width
    blocks = []
    for _ in range(depth):
        block = {}
        for name in ("query", "key", "value", "out"):
            block |= {f"{name}.weight": draw(width, width), f"{name}.bias": draw(width)}
        if rotary:
            block["key.bias"] = torch.zeros(width)
        for name in ("norm1", "norm2"):
            block |= {f"{name}.weight": draw(width, mean=1.0), f"{name}.bias": draw(width)}
        for name in ("gate", "up") if gated else ("up",):
            block |= {f"{name}.weight": draw(hidden, width), f"{name}.bias": draw(hidden)}
        block |= {"down.weight": draw(width, hidden), "down.bias": draw(width)}
        if scaled:
            block |= {"scale1": draw(width, mean=0.5), "scale2": draw(width, mean=0.5)}
        blocks.append(block)
    return Numbers(
        patch,
        heads,
        (draw(width, 3, patch, patch), draw(width)),
        draw(width, std=1.0),
        draw(registers, width, std=1.0),
        None if rotary else draw(width, std=1.0),
        None if rotary else draw(grid * grid, width, std=1.0),
        blocks,
        (draw(width, mean=1.0), draw(width)),
        eps=1e-5 if rotary else 1e-6,
        base=100.0 if rotary else None,
    )


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True)
    return deviation / (deviation.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def angles(n: Numbers, grid: int) -> Tensor:
    """[grid * grid, d / 2]: positions of patches times frequencies, in radians (DINOv3, Sec. 3.2)."""
    count = len(n.cls) // n.heads // 4
    rows = []
    for i in range(grid):
        for j in range(grid):
            y, x = 2 * (i + 0.5) / grid - 1, 2 * (j + 0.5) / grid - 1
            frequencies = [n.base ** (-k / count) for k in range(count)]
            rows.append(
                [2 * math.pi * y * f for f in frequencies] + [2 * math.pi * x * f for f in frequencies]
            )
    return torch.tensor(rows)


def rotated(x: Tensor, by: Tensor) -> Tensor:
    """[N, heads, P, d] as d / 2 complex numbers, each turned by its angle."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(by), by)
    return torch.cat([turned.real, turned.imag], -1)


def forward(n: Numbers, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class token [N, D] after the last norm, and attention [N, heads, h, w] of the last block from it."""
    p, count, width = n.patch, len(images), len(n.cls)
    grid = images.shape[-1] // p
    cut = images.unfold(2, p, p).unfold(3, p, p)  # [N, C, h, w, p, p]
    x = torch.einsum("nchwij,dcij->nhwd", cut, n.projection[0]) + n.projection[1]
    x = x.reshape(count, grid * grid, width)
    cls = n.cls.expand(count, 1, width)
    if n.positions is not None:
        x, cls = x + n.positions, cls + n.cls_position
    x = torch.cat([cls, n.registers.expand(count, *n.registers.shape), x], 1)
    before = 1 + len(n.registers)
    attention = torch.empty(0)
    for b in n.blocks:
        y = norm(x, b["norm1.weight"], b["norm1.bias"], n.eps)
        q, k, v = (
            (y @ b[f"{name}.weight"].T + b[f"{name}.bias"]).unflatten(2, (n.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        if n.base is not None:
            by = angles(n, grid)
            q, k = (torch.cat([z[:, :, :before], rotated(z[:, :, before:], by)], 2) for z in (q, k))
        weights = (q @ k.mT / math.sqrt(width / n.heads)).softmax(-1)
        attention = weights[:, :, 0, before:].unflatten(2, (grid, grid))
        y = (weights @ v).transpose(1, 2).flatten(2) @ b["out.weight"].T + b["out.bias"]
        x = x + y * b.get("scale1", torch.ones(()))
        y = norm(x, b["norm2.weight"], b["norm2.bias"], n.eps)
        up = y @ b["up.weight"].T + b["up.bias"]
        if "gate.weight" in b:
            gate = y @ b["gate.weight"].T + b["gate.bias"]
            up = gate * gate.sigmoid() * up
        else:
            up = F.gelu(up)
        x = x + (up @ b["down.weight"].T + b["down.bias"]) * b.get("scale2", torch.ones(()))
    return norm(x[:, 0], *n.norm, n.eps), attention


def dino_names(n: Numbers, *, registers: str = "register_tokens", chunks: int = 0) -> State:
    """As in the code of DINO, iBOT, MAE, MoCo v3, DINOv2 and DINOv3."""
    state = {
        "cls_token": n.cls[None, None],
        "patch_embed.proj.weight": n.projection[0],
        "patch_embed.proj.bias": n.projection[1],
        "norm.weight": n.norm[0],
        "norm.bias": n.norm[1],
    }
    if n.positions is not None:
        state["pos_embed"] = torch.cat([n.cls_position[None], n.positions])[None]
    if len(n.registers):
        state[registers] = n.registers[None]
    for i, b in enumerate(n.blocks):
        at = f"blocks.{i // chunks}.{i}." if chunks else f"blocks.{i}."
        for part in ("weight", "bias"):
            state |= {
                f"{at}attn.qkv.{part}": torch.cat(
                    [b[f"{name}.{part}"] for name in ("query", "key", "value")]
                ),
                f"{at}attn.proj.{part}": b[f"out.{part}"],
                f"{at}norm1.{part}": b[f"norm1.{part}"],
                f"{at}norm2.{part}": b[f"norm2.{part}"],
            }
            if "gate.weight" not in b:
                state |= {f"{at}mlp.fc1.{part}": b[f"up.{part}"], f"{at}mlp.fc2.{part}": b[f"down.{part}"]}
            elif n.base is not None:
                names = {"w1": "gate", "w2": "up", "w3": "down"}
                state |= {f"{at}mlp.{its}.{part}": b[f"{mine}.{part}"] for its, mine in names.items()}
            else:
                state[f"{at}mlp.w12.{part}"] = torch.cat([b[f"gate.{part}"], b[f"up.{part}"]])
                state[f"{at}mlp.w3.{part}"] = b[f"down.{part}"]
        if "scale1" in b:
            state |= {f"{at}ls1.gamma": b["scale1"], f"{at}ls2.gamma": b["scale2"]}
    return state


def dinov3_names(n: Numbers) -> State:
    """With masks of the key's bias, whatever stands under them, and periods of the rotations."""
    state = dino_names(n, registers="storage_tokens")
    width = len(n.cls)
    for i in range(len(n.blocks)):
        mask = torch.ones(3 * width)
        mask[width : 2 * width] = 0
        state[f"blocks.{i}.attn.qkv.bias_mask"] = mask
        state[f"blocks.{i}.attn.qkv.bias"] = state[f"blocks.{i}.attn.qkv.bias"] + 7 * (1 - mask)
    count = width // n.heads // 4
    return state | {
        "rope_embed.periods": n.base ** (torch.arange(count) / count),
        "mask_token": torch.zeros(1, width),
    }


def hugging_face_names(n: Numbers, *, kind: str) -> State:
    """Of ViTModel (`vit`), Dinov2Model (`dinov2`) or DINOv3ViTModel (`dinov3`)."""
    state = {
        "embeddings.cls_token": n.cls[None, None],
        "layernorm.weight": n.norm[0],
        "layernorm.bias": n.norm[1],
    }
    projection = "embeddings.patch_embeddings." + ("" if kind == "dinov3" else "projection.")
    state |= {f"{projection}weight": n.projection[0], f"{projection}bias": n.projection[1]}
    if n.positions is not None:
        state["embeddings.position_embeddings"] = torch.cat([n.cls_position[None], n.positions])[None]
    if len(n.registers):
        state["embeddings.register_tokens"] = n.registers[None]
    if kind != "vit":
        state["embeddings.mask_token"] = torch.zeros(1, 1, len(n.cls))
    if kind == "dinov3":
        state |= {"norm.weight": state.pop("layernorm.weight"), "norm.bias": state.pop("layernorm.bias")}
    for i, b in enumerate(n.blocks):
        for part in ("weight", "bias"):
            for mine, its in _HUGGING_FACE[kind].items():
                if f"{mine}.{part}" in b and not (kind == "dinov3" and f"{mine}.{part}" == "key.bias"):
                    state[its.format(i=i, part=part)] = b[f"{mine}.{part}"]
            if kind == "dinov2" and "gate.weight" in b:
                state[f"encoder.layer.{i}.mlp.weights_in.{part}"] = torch.cat(
                    [b[f"gate.{part}"], b[f"up.{part}"]]
                )
                state[f"encoder.layer.{i}.mlp.weights_out.{part}"] = b[f"down.{part}"]
        if "scale1" in b:
            at = f"layer.{i}." if kind == "dinov3" else f"encoder.layer.{i}."
            state |= {f"{at}layer_scale1.lambda1": b["scale1"], f"{at}layer_scale2.lambda1": b["scale2"]}
    return state


_ATTENTION = "encoder.layer.{i}.attention."
_HUGGING_FACE = {
    "vit": {
        **{name: f"{_ATTENTION}attention.{name}.{{part}}" for name in ("query", "key", "value")},
        "out": f"{_ATTENTION}output.dense.{{part}}",
        "norm1": "encoder.layer.{i}.layernorm_before.{part}",
        "norm2": "encoder.layer.{i}.layernorm_after.{part}",
        "up": "encoder.layer.{i}.intermediate.dense.{part}",
        "down": "encoder.layer.{i}.output.dense.{part}",
    },
    "dinov2": {
        **{name: f"{_ATTENTION}attention.{name}.{{part}}" for name in ("query", "key", "value")},
        "out": f"{_ATTENTION}output.dense.{{part}}",
        "norm1": "encoder.layer.{i}.norm1.{part}",
        "norm2": "encoder.layer.{i}.norm2.{part}",
        "up": "encoder.layer.{i}.mlp.fc1.{part}",
        "down": "encoder.layer.{i}.mlp.fc2.{part}",
    },
    "dinov3": {
        **{name: f"layer.{{i}}.attention.{name[0]}_proj.{{part}}" for name in ("query", "key", "value")},
        "out": "layer.{i}.attention.o_proj.{part}",
        "norm1": "layer.{i}.norm1.{part}",
        "norm2": "layer.{i}.norm2.{part}",
        "gate": "layer.{i}.mlp.gate_proj.{part}",
        "up": "layer.{i}.mlp.up_proj.{part}",
        "down": "layer.{i}.mlp.down_proj.{part}",
    },
}


def torchvision_names(n: Numbers) -> State:
    """Of torchvision's VisionTransformer."""
    state = {
        "class_token": n.cls[None, None],
        "conv_proj.weight": n.projection[0],
        "conv_proj.bias": n.projection[1],
        "encoder.pos_embedding": torch.cat([n.cls_position[None], n.positions])[None],
        "encoder.ln.weight": n.norm[0],
        "encoder.ln.bias": n.norm[1],
    }
    for i, b in enumerate(n.blocks):
        at = f"encoder.layers.encoder_layer_{i}."
        for part in ("weight", "bias"):
            qkv = torch.cat([b[f"{name}.{part}"] for name in ("query", "key", "value")])
            state |= {
                f"{at}self_attention.in_proj_{part}": qkv,
                f"{at}self_attention.out_proj.{part}": b[f"out.{part}"],
                f"{at}ln_1.{part}": b[f"norm1.{part}"],
                f"{at}ln_2.{part}": b[f"norm2.{part}"],
                f"{at}mlp.0.{part}": b[f"up.{part}"],
                f"{at}mlp.3.{part}": b[f"down.{part}"],
            }
    return state


def below(prefix: str, state: State) -> State:
    """The same names with a prefix."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def others(n: Numbers) -> Numbers:
    """A network of the same shapes and other numbers."""
    return replace(n, cls=n.cls + 1, projection=(n.projection[0] * 2, n.projection[1]))


def dino_head(width: int, **names: Any) -> State:
    """The tensors of DINO's head."""
    return {
        "head.mlp.0.weight": torch.zeros(16, width),
        "head.mlp.0.bias": torch.zeros(16),
        "head.last_layer.weight_g": torch.ones(32, 1),
        "head.last_layer.weight_v": torch.zeros(32, 16),
        **names,
    }
