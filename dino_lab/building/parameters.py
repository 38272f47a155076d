"""Parameters of the student: which are frozen, and how fast the others learn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from dino_lab.errors import Misfit
from dino_lab.network import Network
from dino_lab.spec.model import Optim

# A block of a backbone: `blocks.3.` of a transformer, `stages.3.` of a ConvNet, `layer3.` of a ResNet.
_BLOCK = re.compile(r"(?:^|\.)(?:(?:blocks|stages|layers)\.|layer)(\d+)\.")
_PATCHES = re.compile(r"(?:^|\.)patch_embed\.")


def freeze(student: Network, patterns: Sequence[str]) -> None:
    """Freeze parameters whose name, or the name of a module around them, is like one of the patterns.

    A Misfit where one of them is like no name, or nothing is left to be trained.
    """
    named = dict(student.named_parameters())
    for i, pattern in enumerate(patterns):
        found = [name for name in named if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not found:
            raise Misfit(
                ("optim", "freeze", i),
                f"no parameter has a name like {pattern!r} (the first is {next(iter(named))})",
            )
        for name in found:
            named[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in named.values()):
        raise Misfit(("optim", "freeze"), "every parameter is frozen, so that nothing is trained")


def rate_factors(optim: Optim, student: Network) -> dict[int, float]:
    """What the learning rate is multiplied with, by `id` of a parameter of the backbone.

    Of layer l of L blocks, layer_decay^(L + 1 - l): 0 is what comes before the first block, L + 1 what comes
    after the last, whose factor is 1 as that of the heads (Clark et al., arXiv 2003.10555, Sec. 3.1; Bao et
    al., arXiv 2106.08254, appendix). The patch embedding also by `patch_embed_lr` (DINOv2, arXiv 2304.07193,
    appendix). A Misfit where the backbone has no blocks, or no patches.
    """
    names = [(name, parameter) for name, parameter in student.backbone.named_parameters()]
    factors = {id(parameter): 1.0 for _, parameter in names}
    if optim.layer_decay != 1:
        for (_, parameter), layer in zip(names, _layers(student.backbone), strict=True):
            factors[id(parameter)] *= optim.layer_decay**layer
    if optim.patch_embed_lr != 1:
        patches = [parameter for name, parameter in names if _PATCHES.search(name)]
        if not patches:
            raise Misfit(("optim", "patch_embed_lr"), "the backbone has no patch embedding (patch_embed)")
        for parameter in patches:
            factors[id(parameter)] *= optim.patch_embed_lr
    return factors


def _layers(backbone: nn.Module) -> list[int]:
    """How many layers each parameter is below the heads, in the order of `named_parameters`."""
    numbers = [_number(name) for name, _ in backbone.named_parameters()]
    known = [number for number in numbers if number is not None]
    if not known:
        kind = type(backbone).__name__
        raise Misfit(("optim", "layer_decay"), f"the backbone, {kind}, has no blocks that are numbered")
    first, last = min(known), max(known)
    begins = next(i for i, number in enumerate(numbers) if number is not None)
    # Layers from 0: what comes before the first block, the blocks, what comes after.
    before, after = 0, last - first + 2
    layers = [
        (before if i < begins else after) if number is None else number - first + 1
        for i, number in enumerate(numbers)
    ]
    return [after - layer for layer in layers]


def _number(name: str) -> int | None:
    match = _BLOCK.search(name)
    return None if match is None else int(match[1])
