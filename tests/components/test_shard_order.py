"""The order of images in shards against a naive statement of it, which lists all images."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from dino_lab.components.data._shard_order import ShardOrder, permuted

COUNTS = [7, 0, 30, 1, 12, 25, 3]
MASK = 2**64 - 1


def bijection(number: int, size: int, key: str) -> int:
    """Six rounds of a Feistel network on two halves of equally many bits, until the result is below `size`."""
    half = 3
    while 4**half < size:
        half += 1
    digest = hashlib.shake_128(key.encode()).digest(48)
    while True:
        left, right = divmod(number, 2**half)
        for i in range(6):
            x = right ^ int.from_bytes(digest[8 * i : 8 * i + 8], "little")
            x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
            x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
            x ^= x >> 31
            left, right = right, left ^ x % 2**half
        number = left * 2**half + right
        if number < size:
            return number


def naive_epoch(counts: list[int], window: int, seed: int, epoch: int) -> list[list[tuple[int, int]]]:
    """The images of each window, as (place in the window's shards, position), in the order of the epoch."""
    digest = hashlib.shake_128(f"order of shards in epoch {epoch} with seed {seed}".encode()).digest(8)
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    shards = torch.randperm(len(counts), generator=generator).tolist()
    windows = []
    for w in range(0, len(shards), window):
        listed = [sum(counts[:s]) + i for s in shards[w : w + window] for i in range(counts[s])]
        key = f"order of window {w // window} in epoch {epoch} with seed {seed}"
        slots = [bijection(place, len(listed), key) for place in range(len(listed))]
        windows.append([(slot, listed[slot]) for slot in slots])
    return windows


@pytest.mark.parametrize("window", [1, 2, 3, 7, 20])
def test_any_step_of_any_epoch_is_as_the_naive_statement_has_it(window: int) -> None:
    batch, order = 9, ShardOrder(np.array(COUNTS), window, seed=5)
    for epoch in (3, 0):
        places = [
            (w, slot, position)
            for w, its in enumerate(naive_epoch(COUNTS, window, 5, epoch))
            for slot, position in its
        ]
        assert sorted(position for *_, position in places) == list(range(78))
        for step in (8 - 1, 4, 0):
            expected = [position for *_, position in sorted(places[step * batch : (step + 1) * batch])]
            assert order.positions(epoch, step * batch, batch).tolist() == expected


def test_seed_and_epoch_alone_decide_and_differ() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return ShardOrder(np.full(20, 50), 4, seed).positions(epoch, 0, 200).tolist()

    assert first(3, 1) == first(3, 1)
    assert len({tuple(first(seed, epoch)) for seed in (3, 4) for epoch in (0, 1)}) == 4


def test_a_window_is_read_before_the_next_one() -> None:
    counts = [7, 4, 30, 1, 12, 25, 3]
    order = ShardOrder(np.array(counts), 3, seed=1)
    for window in range(order.windows()):
        shards = order.shards(2, window)
        listed = {i for s in shards for i in range(order.starts[s], order.starts[s + 1])}
        at = sum(counts[s] for w in range(window) for s in order.shards(2, w))
        assert set(order.positions(2, at, len(listed)).tolist()) == listed
        assert {order.window_of(2, at), order.window_of(2, at + len(listed) - 1)} == {window}


def test_processes_that_divide_a_batch_read_different_shards() -> None:
    order = ShardOrder(np.full(16, 1000), 8, seed=0)
    halves = [set(order.shards(0, 0, (0.0, 0.5))), set(order.shards(0, 0, (0.5, 1.0)))]
    assert len(halves[0]) == len(halves[1]) == 4
    assert not halves[0] & halves[1]
    positions = order.positions(0, 0, 512)
    seen = [np.searchsorted(order.starts, half, "right") - 1 for half in np.split(positions, 2)]
    most = [Counter(its.tolist()).most_common(5) for its in seen]
    assert all(
        sum(n for shard, n in its if shard in half) > 240 for its, half in zip(most, halves, strict=True)
    )


@pytest.mark.parametrize("size", [1, 2, 5, 64, 65, 1000])
def test_a_key_chooses_a_bijection(size: int) -> None:
    assert sorted(permuted(np.arange(size), size, "any key").tolist()) == list(range(size))


def test_bijections_are_uniform() -> None:
    """Where 5 numbers go under 4000 keys; and each pair of the first two: chi-square below its 1 - 1e-6."""
    found = np.array([permuted(np.arange(5), 5, f"key {k}") for k in range(4000)])
    for place in range(5):
        counts = np.bincount(found[:, place], minlength=5)
        assert ((counts - 800) ** 2 / 800).sum() < 33.4  # 4 degrees of freedom
    pairs = np.bincount(5 * found[:, 0] + found[:, 1], minlength=25)[[i for i in range(25) if i % 6]]
    assert ((pairs - 200) ** 2 / 200).sum() < 62.0  # 19 degrees of freedom
