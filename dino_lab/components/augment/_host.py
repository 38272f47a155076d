"""What may depend on drawn numbers: on the CPU they can be looked at, a GPU would make the host wait."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def host_knows(x: Tensor) -> bool:
    """Whether values of `x` can be read without waiting."""
    return x.device.type == "cpu"


def to_chosen(x: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *per_image: Tensor) -> Tensor:
    """Give operation(x, *per_image), which must leave images that are not `chosen`, bool [N], as they are.

    Where the host knows which these are, only the others are worked on. `x` [N, ...] may be overwritten.
    """
    if not host_knows(x):
        return operation(x, *per_image)
    (rows,) = chosen.nonzero(as_tuple=True)
    if len(rows) == len(x):
        return operation(x, *per_image)
    if len(rows):
        some = (part.index_select(0, rows) for part in (x, *per_image))
        x.index_copy_(0, rows, operation(*some))
    return x
