"""Every random number of a run is a function of the spec's seed and the place where it is drawn.

Nothing therefore needs to be saved to resume, the crops of any step can be made again, and two specs that
differ in one part draw the same numbers in all others.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


def seed_for(seed: int, *place: str | int) -> int:
    """63 bits that depend on the seed and the place, and look unrelated for any two places."""
    text = repr((seed, *place)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def crop_generator(seed: int, step: int) -> torch.Generator:
    """The source of every random number of the crops of a step, on the CPU whatever the device of the run.

    A GPU draws other numbers for the same seed (Philox in place of Mersenne Twister).
    """
    return torch.Generator().manual_seed(seed_for(seed, "crops", step))


def seed_everything(seed: int, *place: str | int) -> None:
    """Seed Python, NumPy and torch (every device) for what happens next."""
    value = seed_for(seed, *place)
    random.seed(value)
    numpy.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let what draws from torch's global generator on the CPU, as Kornia does, draw from this one."""
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(torch.get_rng_state())
        torch.set_rng_state(kept)
