"""Weights put into a backbone that is there, and what was done to them on the way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_lab.errors import UserError
from dino_lab.protocols import GivesTimmModel, ability
from dino_lab.weights.file import Content
from dino_lab.weights.layout import Of, find_exact, is_known
from dino_lab.weights.names import Named, Tensors, named

SHOWN = 3  # names of tensors in a line


@dataclass(frozen=True)
class Fitted:
    """Tensors that have all names and shapes of a backbone's state, and lines that say how they came to."""

    state: Tensors
    lines: tuple[str, ...]
    prefix: str  # of the names in the file


def fit(content: Content, backbone: nn.Module, of: Of | None = None) -> Fitted:
    """A file's weights for a backbone, which may be on the device `meta`; nothing is changed.

    Names of the backbone itself are taken as they are, also below a framework's prefix. Else the names are
    those of the timm model inside, and position embeddings are interpolated to its grid. A UserError where
    anything is missing, of another shape, or no number.
    """
    whole = backbone.state_dict()
    if (found := find_exact(content, whole, of)) is not None:
        return _checked(content, Fitted(found.tensors, _left_out(found.others), found.prefix))
    giving = ability(backbone, GivesTimmModel)
    if giving is None:
        raise _not_those(content, whole)
    model = giving.as_timm()[0]
    (prefix,) = [name for name, module in backbone.named_modules() if module is model]
    dotted = f"{prefix}." if prefix else ""
    if (found := find_exact(content, model.state_dict(), of)) is not None:
        inside, lines, its = found.tensors, _left_out(found.others), found.prefix
    elif is_known(content):
        weights = named(content, of)
        (inside, lines), its = _renamed(weights, model), weights.prefix
    else:
        raise _not_those(content, model.state_dict())
    state = {name: value for name, value in whole.items() if not name.startswith(dotted)}
    state |= {f"{dotted}{name}": value for name, value in inside.items()}
    return _checked(content, Fitted(state, lines, its))


def fit_named(content: Content, wanted: Mapping[str, Tensor], of: Of | None = None) -> Tensors:
    """A part of the file that has all these names and shapes; a UserError where there is none."""
    if (found := find_exact(content, wanted, of, is_part=True)) is None:
        raise UserError(f"{content.source}: {_first_difference(wanted, content)}")
    return found.tensors


def load(module: nn.Module, state: Tensors) -> None:
    """Copy the tensors into a module, unless it has no memory to copy them to."""
    if not any(value.is_meta for value in module.state_dict().values()):
        module.load_state_dict(state)


def _renamed(weights: Named, model: Any) -> tuple[Tensors, tuple[str, ...]]:
    wanted: Tensors = model.state_dict()
    tensors = _as_eva(weights, wanted) if "blocks.0.gamma_1" in wanted else dict(weights.tensors)
    lines: list[str] = []
    positions, target = tensors.get("pos_embed"), wanted.get("pos_embed")
    if positions is not None and target is not None and positions.shape != target.shape:
        tensors["pos_embed"] = _interpolated(weights.source, positions, model, lines)
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise UserError(f"{weights.source}: lacks {_some(missing)} of the backbone")
    for name, value in wanted.items():
        if tensors[name].shape != value.shape:
            raise UserError(
                f"{weights.source}: {name} is {list(tensors[name].shape)}, in the backbone "
                f"{list(value.shape)}"
            )
    extra = [name for name in tensors if name not in wanted]
    if deeper := [name for name in extra if name.startswith(("blocks.", "layer"))]:
        raise UserError(f"{weights.source}: has {_some(deeper)}, which the backbone lacks")
    lines += _left_out([*weights.left_out, *extra])
    return {name: tensors[name] for name in wanted}, tuple(lines)


def _as_eva(weights: Named, wanted: Mapping[str, Tensor]) -> Tensors:
    """As timm's Eva has them: LayerScale under other names, no bias of the key."""
    tensors: Tensors = {}
    for name, value in weights.tensors.items():
        name = name.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2")
        if not name.endswith(".attn.qkv.bias"):
            tensors[name] = value
            continue
        q, k, v = value.chunk(3)
        its = name.removesuffix("qkv.bias")
        if f"{its}q_bias" in wanted and (k.is_meta or not bool(k.any())):
            tensors |= {f"{its}q_bias": q, f"{its}v_bias": v}
        elif f"{its}q_bias" in wanted or bool(value.any()):
            tensors[name] = value  # which is said to be in the way
    return tensors


def _interpolated(source: str, positions: Tensor, model: Any, lines: list[str]) -> Tensor:
    """Position embeddings on the grid of the model's patches (DINO, arXiv 2104.14294, appendix)."""
    from timm.layers import resample_abs_pos_embed

    new = tuple(model.patch_embed.grid_size)
    prefix = 0 if model.no_embed_class else int(model.num_prefix_tokens)
    side = math.isqrt(max(positions.shape[1] - prefix, 0))
    fits = positions.ndim == 3 and side > 0 and side**2 == positions.shape[1] - prefix
    if not fits or positions.shape[2] != model.pos_embed.shape[2]:
        raise UserError(
            f"{source}: pos_embed is {list(positions.shape)}, in the backbone {list(model.pos_embed.shape)}"
        )
    lines.append(f"position embeddings of {side} x {side} patches are interpolated to {new[0]} x {new[1]}")
    if positions.is_meta or model.pos_embed.is_meta:
        return torch.empty_like(model.pos_embed)
    return resample_abs_pos_embed(positions.float(), new, (side, side), num_prefix_tokens=prefix)


def _checked(content: Content, fitted: Fitted) -> Fitted:
    for name, value in fitted.state.items():
        if value.is_floating_point() and not value.is_meta and not bool(value.isfinite().all()):
            raise UserError(f"{content.source}: {name} has values that are no numbers")
    return fitted


def _left_out(names: Sequence[str]) -> tuple[str, ...]:
    return (f"left out of the file: {_some(names)}",) if names else ()


def _some(names: Sequence[str]) -> str:
    """How many, and the first names."""
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:SHOWN])}{more})"


def _not_those(content: Content, wanted: Mapping[str, Tensor]) -> UserError:
    difference = _first_difference(wanted, content)
    return UserError(
        f"{content.source}: its weights are not those of the backbone that is asked for ({difference})"
    )


def _first_difference(wanted: Mapping[str, Tensor], content: Content) -> str:
    for name, value in wanted.items():
        found = [its for its in content.tensors if its == name or its.endswith(f".{name}")]
        if not found:
            return f"there is no {name}"
        if all(content.tensors[its].shape != value.shape for its in found):
            return f"{name} is {list(content.tensors[found[0]].shape)}, not {list(value.shape)}"
    return "they are spread over several networks"
