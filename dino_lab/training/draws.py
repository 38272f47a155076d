"""Random numbers of layers (dropout, stochastic depth), which do not depend on how a batch is divided.

Where a network sees some images of a batch, each random number is drawn for the whole batch, from the same
generator in the same order, and those of its images are kept. So the numbers are those that one process draws
for the batch at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class WholeBatchDraws(TorchDispatchMode):
    """Inside `of`, random operations of torch run for all images of a batch, and give the results for some.

    Those are meant whose first dimension is that of images [V, B], or a multiple of it, as where the windows
    of an image are rows.
    """

    def __init__(self, batch: int, images: slice) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._batch, self._images = batch, images
        self._views: int | None = None

    @contextmanager
    def of(self, views: int | None) -> Iterator[None]:
        """What runs inside sees so many views of each image; with None as many as there are rows for."""
        self._views = views
        with self:
            yield

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, for the whole batch if it is random."""
        kwargs = kwargs or {}
        if not _is_random(func):
            return func(*args, **kwargs)
        if "attention" in func.name():
            _refuse_dropout(func, args, kwargs)
            return func(*args, **kwargs)
        if "rrelu" in func.name():
            raise RuntimeError(
                "rrelu draws as many numbers as it sees negative ones, which cannot be divided"
            )
        return self._draw(func, args, kwargs)

    def _draw(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mine = self._images.stop - self._images.start
        length = next((length for value in args if (length := _length(value))), 0)
        views = self._views or length // mine
        if not length or length % (views * mine):
            return func(*args, **kwargs)  # of no image: the same on every process
        whole = [self._whole(value, length, views) for value in args]
        drawn = func(*whole, **kwargs)
        if func._schema.is_mutable:
            args[0].copy_(self._some(drawn, views))
            return args[0]
        return tree_map(lambda part: self._some(part, views), drawn)

    def _whole(self, value: Any, rows: int, views: int) -> Any:
        """A tensor, or a shape, of so many rows with those of every image; what others hold are copies."""
        if _length(value) != rows:
            return value
        mine = self._images.stop - self._images.start
        length = rows // mine * self._batch
        if isinstance(value, Tensor):
            dense = torch._prims_common.is_non_overlapping_and_dense_or_false(value)
            if dense and value.stride(0) == max(value.stride()):
                # Numbers are drawn in the order of memory.
                there = value.new_empty_strided((length, *value.shape[1:]), value.stride())
            else:
                there = value.new_empty((length, *value.shape[1:]))
            each = torch.arange(self._batch, device=value.device) - self._images.start
            rest = _by_image(value, views, mine).index_select(1, each % mine)
            return there.copy_(rest.flatten(0, 2))
        return [length, *value[1:]]

    def _some(self, value: Any, views: int) -> Any:
        """The rows of the images that are seen."""
        if not isinstance(value, Tensor):
            return value
        return _by_image(value, views, self._batch)[:, self._images].flatten(0, 2)


def _by_image(value: Tensor, views: int, images: int) -> Tensor:
    """[V, images, rows of each, ...] of [rows, ...]."""
    return value.reshape(views, images, -1, *value.shape[1:])


def _length(value: Any) -> int:
    """The first dimension of a tensor or a shape; 0 where there is none."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    shape = isinstance(value, (list, torch.Size)) and len(value) > 0 and isinstance(value[0], int)
    return value[0] if shape else 0


@cache
def _is_random(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


def _refuse_dropout(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """A RuntimeError where fused attention has dropout inside."""
    named = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    if named.get("dropout_p", 0.0):
        raise RuntimeError(
            "fused attention draws its dropout for the images that it sees, so it depends on the number of "
            "processes; compute it in steps (torch.nn.attention.sdpa_kernel(SDPBackend.MATH)), or none"
        )
