"""The order of images in shards: a pure function of (seed, epoch, step), without a list of the images.

An epoch permutes the shards and cuts them into windows of a few shards. Inside a window the images are
permuted by a keyed bijection: a Feistel network (Luby and Rackoff, "How to construct pseudorandom
permutations from pseudorandom functions", 1988) on the smallest square domain that holds the
window, applied again until the number lies inside it ("cycle walking": Black and Rogaway, "Ciphers with
arbitrary finite domains", 2002). So any step of any epoch is
computed by itself, from the numbers of images in the shards.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]
ROUNDS = 6
LEAST_HALF = 3  # bits of half a number: smaller domains have too few permutations


class ShardOrder:
    """Which images each place of an epoch has; positions count through all shards as they are listed."""

    def __init__(self, counts: Integers, window: int, seed: int) -> None:
        """`counts` int64 [S]: the images of each shard; `window`: how many shards are mixed."""
        self.counts, self.window, self.seed = counts, window, seed
        self.starts = np.concatenate(([0], np.cumsum(counts)))  # [S + 1]
        self.images = int(self.starts[-1])
        self._epoch = lru_cache(2)(self._make_epoch)

    def positions(self, epoch: int, first: int, count: int) -> Integers:
        """Positions int64 [count] of the images at places `first`, `first + 1`, ... of an epoch.

        What of them lies in one window is in the order of its shards, so that it is read in sequence, and so
        that processes that divide a batch read different shards.
        """
        its = self._epoch(epoch)
        places = np.arange(first, first + count)
        windows = np.searchsorted(its.edges, places, side="right") - 1
        parts = [
            its.edges[w] + np.sort(self._mixed(epoch, int(w), places[windows == w] - its.edges[w]))
            for w in np.unique(windows)
        ]
        slots = np.concatenate(parts) if parts else places  # [count], in the order of the permuted shards
        at = np.searchsorted(its.ends, slots, side="right")
        shards = its.shards[at]
        return self.starts[shards] + slots - (its.ends[at] - self.counts[shards])

    def window_of(self, epoch: int, place: int) -> int:
        """The window that a place of an epoch lies in."""
        return int(np.searchsorted(self._epoch(epoch).edges, place, side="right")) - 1

    def windows(self) -> int:
        """How many windows an epoch has."""
        return -(-len(self.counts) // self.window)

    def shards(self, epoch: int, window: int, share: tuple[float, float] = (0.0, 1.0)) -> list[int]:
        """The shards of a window that hold its images from one share of them to another."""
        its = self._epoch(epoch)
        low, high = its.edges[window], its.edges[window + 1]
        first, last = (low + share[0] * (high - low), low + share[1] * (high - low))
        some = range(window * self.window, min((window + 1) * self.window, len(self.counts)))
        return [
            int(its.shards[k])
            for k in some
            if its.ends[k] > first and its.ends[k] - self.counts[its.shards[k]] < last
        ]

    def _make_epoch(self, epoch: int) -> _Epoch:
        digest = _digest(f"order of shards in epoch {epoch} with seed {self.seed}", 8)
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        shards = torch.randperm(len(self.counts), generator=generator).numpy()
        ends = np.cumsum(self.counts[shards])
        edges = np.concatenate(([0], ends[self.window - 1 :: self.window]))
        if len(edges) <= self.windows():
            edges = np.append(edges, self.images)
        return _Epoch(shards, ends, edges)

    def _mixed(self, epoch: int, window: int, places: Integers) -> Integers:
        edges = self._epoch(epoch).edges
        text = f"order of window {window} in epoch {epoch} with seed {self.seed}"
        return permuted(places, int(edges[window + 1] - edges[window]), text)


@dataclass(frozen=True)
class _Epoch:
    """Shards in their order [S], the place after the last image of each [S], and where windows begin."""

    shards: Integers
    ends: Integers
    edges: Integers


def permuted(numbers: Integers, size: int, key: str) -> Integers:
    """Numbers of 0 .. size - 1, int64 [N], under a bijection of this range that a text chooses."""
    half = max(LEAST_HALF, -(-(size - 1).bit_length() // 2))
    keys = np.frombuffer(_digest(key, 8 * ROUNDS), dtype="<u8").astype(np.uint64)
    found = numbers.astype(np.uint64)
    outside = np.arange(len(found))
    while len(outside):
        found[outside] = _feistel(found[outside], np.uint64(half), keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(numbers: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = numbers >> half, numbers & mask
    for key in keys:
        left, right = right, left ^ (_scrambled(right ^ key) & mask)
    return left << half | right


def _scrambled(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014, figure 16, variant 13)."""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _digest(text: str, length: int) -> bytes:
    return hashlib.shake_128(text.encode()).digest(length)
