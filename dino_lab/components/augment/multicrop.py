"""Multi-crop: a few large crops that both networks see, and many small ones that only the student sees."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from dino_lab.components.augment._operations import Operations
from dino_lab.registry import Flat, register
from dino_lab.registry.ranges import Probability, Scale
from dino_lab.types import Images, Views

PerKind = tuple[Probability, Probability, Probability]
MOST_VIEWS = 1000  # of an image, of either size
FREE = ("preset", "global_views", "global_size", "local_views", "local_size")  # what a preset leaves open


@register("augment", "multicrop")
class MultiCrop(nn.Module):
    """Global and local crops of each image (SwAV, arXiv 2006.09882, Sec. 3.2; DINO, arXiv 2104.14294).

    Every student view is compared with every teacher view but itself. The defaults are DINO's operations,
    order and probabilities; `preset: dino_v1` makes sure of that: it refuses any other value, but for
    the number and size of the crops. Blur and solarize have three probabilities each: of global view 1, of
    the other global views, of the local views.
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        preset: Annotated[
            Literal["dino_v1"] | None,
            Field(description="dino_v1: refuse values other than DINO's, but for number and size of crops"),
        ] = None,
        global_views: Annotated[
            int, Field(ge=2, le=MOST_VIEWS, description="large crops, which both networks see")
        ] = 2,
        global_size: Annotated[int, Field(gt=0, description="side of the global crops, in pixels")] = 224,
        global_scale: Scale = (0.4, 1.0),
        local_views: Annotated[
            int,
            Field(ge=0, le=MOST_VIEWS, description="small crops, which only the student sees; DINO: 2 to 10"),
        ] = 8,
        local_size: Annotated[int, Field(gt=0, description="side of the local crops, in pixels")] = 96,
        local_scale: Scale = (0.05, 0.4),
        operations: Flat[Operations] = Operations(),
        blur_probability: Annotated[
            PerKind,
            Field(description="probability of a blur: global view 1, other global views, local views"),
        ] = (1.0, 0.1, 0.5),
        solarize_probability: Annotated[
            PerKind,
            Field(description="probability to solarize: global view 1, other global views, local views"),
        ] = (0.0, 0.2, 0.0),
    ) -> None:
        if preset is not None:
            _check_preset(preset, locals())
        super().__init__()
        blur, solarize = blur_probability, solarize_probability
        large = operations.policy(
            global_size, global_scale, _globals(blur, global_views), _globals(solarize, global_views)
        )
        self.policies = [large]
        if local_views:
            every = local_views
            self.policies += [
                operations.policy(local_size, local_scale, blur[2:] * every, solarize[2:] * every)
            ]
        self.groups = tuple((policy.views, policy.size) for policy in self.policies)
        pairs = 1 - torch.eye(global_views + local_views, global_views, dtype=torch.int8)
        self.register_buffer("pairs", pairs)

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to global and, if any, local crops."""
        return self.forward_share(images, generator, len(images), 0)

    def forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """The crops of some images of a batch, from position `first` on: see the protocol."""
        crops = [policy(images, generator, batch, first) for policy in self.policies]
        return Views(crops, self.pairs)


def _globals(probability: tuple[float, float, float], views: int) -> tuple[float, ...]:
    return probability[:1] + probability[1:2] * (views - 1)


def _check_preset(preset: str, given: dict[str, Any]) -> None:
    """The preset is the constructor's defaults; whatever differs is an error that names it."""
    defaults = {name: p.default for name, p in inspect.signature(MultiCrop).parameters.items()}
    given, wanted = _flat({name: given[name] for name in defaults}), _flat(defaults)
    for name, value in wanted.items():
        if name not in FREE and given[name] != value:
            raise ValueError(
                f"{name} is {value} in preset {preset}, got {given[name]}; leave out {name} or the preset"
            )


def _flat(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a spec has them: the keys of the operations among the others."""
    return {**arguments, **arguments["operations"].model_dump()} | {"operations": None}
