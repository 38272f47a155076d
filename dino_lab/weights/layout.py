"""Which tensors of a file are a backbone's: names of frameworks around it are taken off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dino_lab.errors import UserError
from dino_lab.weights.file import Content

Of = Literal["teacher", "student"]
Family = Literal["timm", "hugging face", "torchvision", "resnet", "sequential resnet"]
# A tensor by which a backbone is found; what stands before it is the framework's.
_ANCHORS: dict[Family, tuple[str, ...]] = {
    "timm": ("patch_embed.proj.weight",),
    "hugging face": ("embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight"),
    "torchvision": ("conv_proj.weight",),
    "resnet": ("layer1.0.conv1.weight",),
    "sequential resnet": ("4.0.conv1.weight",),  # nn.Sequential(*list(resnet.children())[:-1])
}
# Words in the names of a moving average; those of the first row are what its own authors evaluate.
_EVALUATED = {"teacher", "target", "ema"}
_AVERAGED = {*_EVALUATED, "momentum", "k"}


@dataclass(frozen=True)
class Found:
    """The backbone of a file."""

    family: Family
    prefix: str  # of its names in the file
    tensors: dict[str, Tensor]  # without the prefix
    others: tuple[str, ...]  # whole names of all other tensors


def find_backbone(content: Content, of: Of | None = None) -> Found:
    """The backbone of a file; `of` chooses between two, else that which its authors evaluate is taken.

    A UserError where there is none whose names are known.
    """
    found = _anchored(content)
    if not found:
        first = ", ".join(list(content.tensors)[:3])
        raise UserError(
            f"{content.source}: holds no vision transformer or ResNet by names that are known "
            f"({first}, ...); name its backbone: {{name: timm, model: ...}}"
        )
    prefix = chosen([prefix for _, prefix in found], of)
    family = next(its for its, one in found if one == prefix)
    tensors = {name[len(prefix) :]: t for name, t in content.tensors.items() if name.startswith(prefix)}
    others = tuple(name for name in content.tensors if not name.startswith(prefix))
    return Found(family, prefix, tensors, others)


def is_known(content: Content) -> bool:
    """Whether there is a vision transformer or a ResNet whose names are known."""
    return bool(_anchored(content))


def _anchored(content: Content) -> list[tuple[Family, str]]:
    """Each backbone's family and what stands before its names."""
    return [
        (family, name.removesuffix(anchor))
        for family, anchors in _ANCHORS.items()
        for anchor in anchors
        for name in content.tensors
        if name == anchor or name.endswith(f".{anchor}")
    ]


def find_exact(
    content: Content, wanted: Mapping[str, Tensor], of: Of | None = None, *, is_part: bool = False
) -> Found | None:
    """What in the file has all names and shapes of `wanted` and no block more, or None.

    With `is_part` there may be more beside.
    """
    first = next(iter(wanted), None)
    prefixes = [
        name.removesuffix(first)
        for name in content.tensors
        if first is not None and (name == first or name.endswith(f".{first}"))
    ]
    fitting = [prefix for prefix in prefixes if _fits(content.tensors, prefix, wanted, is_part)]
    if not fitting:
        return None
    prefix = chosen(fitting, of)
    taken = {f"{prefix}{name}" for name in wanted}
    others = tuple(name for name in content.tensors if name not in taken)
    return Found("timm", prefix, {name: content.tensors[f"{prefix}{name}"] for name in wanted}, others)


def chosen(prefixes: list[str], of: Of | None) -> str:
    """The prefix of the network that is asked for; the shortest where several are its."""

    def rank(prefix: str) -> tuple[bool, bool, int, str]:
        words = set(re.split(r"[._]", prefix))
        averaged, evaluated = bool(words & _AVERAGED), bool(words & _EVALUATED)
        first = averaged if of == "student" else not (averaged if of == "teacher" else evaluated)
        return first, averaged, len(prefix), prefix

    return min(prefixes, key=rank)


def holds_both(content: Content) -> bool:
    """Whether a file has a backbone and its moving average."""
    try:
        sides = {find_backbone(content, of).prefix for of in ("teacher", "student")}
    except UserError:
        return False
    return len(sides) == 2


_BLOCK = re.compile(r"(^|\.)(blocks|layers?\d?|stages)\.")


def _fits(tensors: Mapping[str, Tensor], prefix: str, wanted: Mapping[str, Tensor], is_part: bool) -> bool:
    rest = [] if is_part else [name[len(prefix) :] for name in tensors if name.startswith(prefix)]
    return not any(name not in wanted and _BLOCK.search(name) for name in rest) and all(
        (tensor := tensors.get(f"{prefix}{name}")) is not None and tensor.shape == its.shape
        for name, its in wanted.items()
    )
