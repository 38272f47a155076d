"""Views on the CPU: one crop after the other, in as many threads as torch has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dino_lab.kernels.crops.resize import flip
from dino_lab.kernels.crops.rotate import rotate
from dino_lab.kernels.crops.sampled import SampledParameters
from dino_lab.types import Images, WholeImages

CACHED = 600_000  # numbers of the crops that a thread cuts before it changes them: they stay in its cache
ALONE = 2_000_000  # numbers up to which one thread makes all crops: OpenMP's still spin on the other cores
SHARES = 4  # of the crops for each thread: some views take longer than others


def make(images: Images, sampled: SampledParameters, size: int, largest_radius: int) -> Tensor:
    """The crops float32 [V, B, C, size, size] in 0..1 that were sampled of images uint8 [B, C, H, W], or of
    many sizes.

    Cut in whole grey levels, as Pillow's are; `largest_radius` is that of the blur's kernels, in pixels.
    """
    # Numba takes half a second to import, and a GPU does not need it.
    from dino_lab.kernels.crops import numba_kernels as kernels

    assert sampled.boxes is not None
    V, B = sampled.boxes.shape[:2]
    whole = images if isinstance(images, WholeImages) else WholeImages.of_one_size(images)
    crops = torch.empty(V, B, whole.channels, size, size)
    x, each = crops.flatten(0, 1), sampled.flat()
    assert each.boxes is not None
    flipped = torch.zeros(V * B, dtype=torch.bool) if each.flipped is None else each.flipped
    boxes = each.boxes.int().contiguous()
    laid_out = [part.contiguous().numpy() for part in (whole.pixels, whole.places, whole.sizes)]
    cut = [*laid_out, boxes.numpy(), flipped.contiguous().numpy(), x.numpy()]

    def work(part: range) -> None:
        kernels.cut(part.start, part.stop, *cut)
        change_part(part)

    change_part = _changing(x, each, largest_radius)
    _in_parts(work, x)
    return crops


def change(crops: Tensor, sampled: SampledParameters, largest_radius: int) -> Tensor:
    """Crops float32 [V * B, C, size, size] in 0..1 after the pass that was sampled, which cuts none."""
    each = sampled.flat()
    x = crops.contiguous()
    if each.flipped is not None:
        x = flip(x, each.flipped)
    elif x is crops:
        x = crops.clone()
    _in_parts(_changing(x, each, largest_radius), x)
    return x


def _changing(x: Tensor, each: SampledParameters, largest_radius: int) -> Callable[[range], None]:
    """What rotates, colours, blurs and solarizes a range of the crops x [N, C, size, size] in place."""
    from dino_lab.kernels.crops import numba_kernels as kernels

    given = [x.numpy(), *_changes(each, len(x)), largest_radius]

    def work(part: range) -> None:
        if each.angle is not None:
            some = slice(part.start, part.stop)
            x[some] = rotate(x[some], each.angle[some])
        kernels.change(part.start, part.stop, *given)

    return work


def _in_parts(work: Callable[[range], None], x: Tensor) -> None:
    threads = torch.get_num_threads() if x.numel() > ALONE else 1
    run = map if threads == 1 else _threads(threads).map
    list(run(work, _parts(len(x), x[0].numel(), threads)))


def _parts(crops: int, numbers: int, threads: int) -> Iterator[range]:
    """Ranges of crops for the threads, each small enough for the cache of a core."""
    most = max(1, min(CACHED // numbers, -(-crops // (SHARES * threads))))
    return (range(first, min(first + most, crops)) for first in range(0, crops, most))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="augment")


def _changes(each: SampledParameters, N: int) -> list[Any]:
    """The kernel's arguments for every crop; neutral ones where an operation was not sampled."""
    blends = torch.tensor([1.0, 0.0, 0.0]).expand(N, 6, 3) if each.blends is None else each.blends
    zero, no = torch.zeros(N), torch.zeros(N, dtype=torch.bool)
    pairs = [
        (each.hue_shift, zero),
        (each.grey, no),
        (each.blurred, no),
        (each.sigma, zero),
        (each.solarized, no),
    ]
    rest = [default if given is None else given for given, default in pairs]
    return [part.contiguous().numpy() for part in (blends, *rest)]
