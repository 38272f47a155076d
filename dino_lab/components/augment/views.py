"""Views as lists of operations, group by group, and which views are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from dino_lab.components.augment._operations import Pixels
from dino_lab.components.augment._other_image import check_two_images, show_other_image, triplet_pairs
from dino_lab.components.augment._policy import Policy
from dino_lab.components.augment._presets import Preset
from dino_lab.components.augment._presets import groups as preset_groups
from dino_lab.errors import Misfit, UserError
from dino_lab.registry import ParameterGroup, register, registry
from dino_lab.registry.operations import OperationParams
from dino_lab.types import Images, Views

MOST_VIEWS = 1000  # of an image, in a group
TRIED = 10_000_000  # pixels of a group's views up to which it is tried before anything starts
Pairs = Literal["all_but_self", "one_way", "triplet", "none"]


class Group(ParameterGroup):
    """Views of one size that the same operations make, each drawn by itself."""

    views: int = Field(1, ge=1, le=MOST_VIEWS, description="crops of each image")
    size: Pixels = 224
    sees: Literal["both", "student"] = Field(
        "both", description="the networks that see the views: student and teacher, or the student alone"
    )
    ops: tuple[OperationParams, ...] = Field(
        description="operations in their order, such as flip, {grey: 0.2} or {crop: {scale: [0.4, 1]}}"
    )

    @model_validator(mode="after")
    def _check_operations(self) -> Self:
        if not self.ops:
            raise ValueError("has no operations; {ops: [crop]} is the shortest list")
        for params in self.ops:
            given = getattr(params, "p", None)
            if isinstance(given, tuple) and len(given) != self.views:
                raise ValueError(
                    f"{params.name}: p has {len(given)} probabilities, one for each view, and there are "
                    f"{self.views} views"
                )
        return self


@register("augment", "views")
class ListedViews(nn.Module):
    """Groups of views, each made by a list of operations; `dino-lab list operation` names them.

    `pairs` says what is compared: every view of the student with every view of the teacher but itself; views
    of later groups with those of the first alone, the keys (`one_way`, MoCo, arXiv 1911.05722); the first
    view with the second, and against the third, which is of another image (`triplet`); or each with the
    teacher's output for itself (`none`, for supervised training). With `preset` the groups are published
    ones: dino_v1 (arXiv 2104.14294), dino_v2 (arXiv 2304.07193), simclr (arXiv 2002.05709), byol (arXiv
    2006.07733) or moco_v3 (arXiv 2104.02057).
    """

    pairs: Tensor

    def __init__(
        self,
        *,
        groups: Annotated[
            tuple[Group, ...], Field(description="views by size and operations; the teacher's come first")
        ] = (),
        pairs: Annotated[Pairs, Field(description="views that are compared")] = "all_but_self",
        preset: Annotated[
            Preset | None,
            Field(description="published groups, in place of `groups`; null: dino_v1 where there are none"),
        ] = None,
        size: Annotated[int, Field(gt=0, description="side of a preset's large crops, in pixels")] = 224,
        local_size: Annotated[
            int, Field(gt=0, description="side of a preset's local crops, in pixels; DINO: 96, DINOv2: 98")
        ] = 96,
        local_views: Annotated[
            int, Field(ge=0, le=MOST_VIEWS, description="local crops of dino_v1 and dino_v2")
        ] = 8,
    ) -> None:
        super().__init__()
        if preset is not None and groups:
            raise ValueError("has a preset and groups; give one of them")
        if not groups:
            listed = preset_groups(preset or "dino_v1", size, local_size, local_views)
            groups = tuple(Group.model_validate(group) for group in listed)
        by_size = _by_size(groups)
        made = iter([_made(number, group) for number, group in enumerate(groups)])
        self.policies = [[next(made) for _ in same] for same in by_size]
        self.groups = tuple((sum(g.views for g in same), same[0].size) for same in by_size)
        self.other_image = pairs == "triplet"
        self.register_buffer("pairs", _pairs(pairs, groups, self.groups))

    def forward(self, images: Images, generator: torch.Generator) -> Views:
        """Images uint8 [B, C, H, W] or of many sizes to crops of each size, the teacher's first."""
        views = self._forward_share(images, generator, len(images), 0)
        if self.other_image:
            check_two_images(images, "views", "view")
            show_other_image(views.crops[0])
        return views

    @property
    def forward_share(self) -> Callable[[Images, torch.Generator, int, int], Views] | None:
        """None where the whole batch is needed, of which a view shows another image: see the protocol."""
        return None if self.other_image else self._forward_share

    def _forward_share(self, images: Images, generator: torch.Generator, batch: int, first: int) -> Views:
        """The crops of some images of a batch, from position `first` on: see the protocol."""
        crops = [[policy(images, generator, batch, first) for policy in same] for same in self.policies]
        return Views([same[0] if len(same) == 1 else torch.cat(same) for same in crops], self.pairs)


def _made(number: int, group: Group) -> Policy:
    """The policy of a group, tried once where Kornia computes some of it; a Misfit says which part fails."""
    operations = []
    for place, params in enumerate(group.ops):
        try:
            operations.append((params.name, registry.build("operation", params, group.size)))
        except ValueError as error:
            raise Misfit(("augment", "groups", number, "ops", place), str(error)) from error
    made = Policy(group.views, group.size, operations)
    if not made.is_fused and group.views * group.size**2 <= TRIED:
        noise = torch.rand(1, 3, group.size, group.size, generator=torch.Generator().manual_seed(0))
        try:
            made((255 * noise).byte(), torch.Generator().manual_seed(0))
        except UserError as error:
            raise Misfit(("augment", "groups", number), str(error)) from error
    return made


def _by_size(groups: Sequence[Group]) -> list[list[Group]]:
    """Neighbours of one size that the same networks see together; a ValueError for lists that cannot be."""
    found: list[list[Group]] = []
    for number, group in enumerate(groups, 1):
        last = found[-1][-1] if found else None
        if last is not None and (last.size, last.sees) == (group.size, group.sees):
            found[-1].append(group)
            continue
        if group.sees == "both" and last is not None:
            raise ValueError(
                f"group {number}: the teacher's views come first and have one size, {groups[0].size} pixels; "
                "give it that size and put it before the student's, or say sees: student"
            )
        if group.sees == "student" and last is None:
            raise ValueError("group 1: the teacher sees none of the views; the first group is for both")
        found.append([group])
    return found


def _pairs(kind: Pairs, groups: Sequence[Group], by_size: Sequence[tuple[int, int]]) -> Tensor:
    """[S, T] int8, see `Views`."""
    S, T = sum(views for views, _ in by_size), by_size[0][0]
    match kind:
        case "all_but_self":
            return 1 - torch.eye(S, T, dtype=torch.int8)
        case "none":
            return torch.eye(S, T, dtype=torch.int8)
        case "one_way":
            if len(groups) < 2 or groups[0].views != T:
                raise ValueError(
                    "pairs: one_way compares later groups with the first, which the teacher sees alone; "
                    "give the others sees: student"
                )
            return (torch.arange(S) >= T).to(torch.int8)[:, None].repeat(1, T)
        case "triplet":
            if (S, T) != (3, 3):
                raise ValueError(
                    f"pairs: triplet takes 3 views that both networks see, not {S}, {T} of the teacher"
                )
            return triplet_pairs()
