"""A pool of natural-looking textures, and backgrounds that are put together from pieces of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dino_lab.components.data._drawing import uniforms

_KEY = (1, 3)  # split and stream of the hash, which no image uses
_MOST = 4096  # numbers of one texture
_LINES = 16  # patterns of contour lines, where one texture ends and another begins
_FIRST_LINE = 2**20  # index of the first of them in the hash
_OF_PIECE = 4  # numbers that decide a piece of a texture
_PATCHES = 2
OF_BACKGROUND = (1 + 2 * _PATCHES) * _OF_PIECE


class Backgrounds:
    """A pool of `count` textures, and pictures of `size` pixels that show pieces of two of them.

    All pictures share the pool, so that a texture says nothing of the object in front of it, and little of
    which picture it is.
    """

    def __init__(self, seed: int, count: int, size: int) -> None:
        kinds = list(TEXTURES.values())
        made = [kinds[i % len(kinds)](_Numbers(seed, i), 2 * size) for i in range(count)]
        self._textures = torch.stack(made)  # [P, 3, 2 size, 2 size], without seams
        lines = [
            _noise(_Numbers(seed, _FIRST_LINE + i), 2 * size, (6, 6), octaves=2)[None] for i in range(_LINES)
        ]
        self._lines = torch.stack(lines)  # [_LINES, 1, 2 size, 2 size] in 0..1
        self._size = size

    def draw(self, random: Tensor) -> Tensor:
        """Backgrounds [N, 3, H, W] in 0..1, by numbers [N, OF_BACKGROUND]."""
        first, *others = random.split(_OF_PIECE, 1)
        canvas = _pieces(self._textures, first)
        for texture, line in zip(others[::2], others[1::2], strict=True):
            height = _pieces(self._lines, line) - 0.5  # 0 at the contour line
            share = (0.5 + self._size / 2 * height).clamp(0, 1)
            canvas = canvas + share * (_pieces(self._textures, texture) - canvas)
        return canvas


class _Numbers:
    """Numbers in [0, 1) of one texture, each used once."""

    def __init__(self, seed: int, index: int) -> None:
        split, stream = _KEY
        self._left = uniforms(seed, split, torch.tensor([index]), _MOST, stream)[0]

    def take(self, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        taken, self._left = self._left[:count], self._left[count:]
        return taken.view(shape)


def _pieces(pool: Tensor, random: Tensor) -> Tensor:
    """Cut-outs [N, C, H, W], half as wide as the textures of a pool [P, C, 2 H, 2 W].

    Numbers [N, 4] say of which texture, from where (down, across), and whether mirrored.
    """
    P, C, side, _ = pool.shape
    which, down, across, mirrored = random.unbind(1)
    line = torch.arange(side // 2)
    forth_or_back = torch.where((mirrored < 0.5)[:, None], line, line.flip(0))
    rows = ((down * side).long()[:, None] + line) % side  # [N, H]
    columns = ((across * side).long()[:, None] + forth_or_back) % side  # [N, W]
    at = ((which * P).long()[:, None] * side + rows)[:, :, None] * side + columns[:, None]  # [N, H, W]
    return pool.movedim(1, -1).reshape(-1, C)[at].movedim(-1, 1)


def _noise(numbers: _Numbers, side: int, cells: tuple[int, int], octaves: int = 1) -> Tensor:
    """Value noise [side, side] in 0..1 that repeats: `cells` down and across, doubled in each octave."""
    total, weight = torch.zeros(side, side), 0.0
    for octave in range(octaves):
        down, across = (n * 2**octave for n in cells)
        lattice = numbers.take(down, across)
        total = total + 0.5**octave * _blend(_blend(lattice, side).T, side).T
        weight += 0.5**octave
    return total / weight


def _blend(lattice: Tensor, side: int) -> Tensor:
    """Rows [n, M] to smooth steps between them [side, M]."""
    n = len(lattice)
    place = (torch.arange(side) + 0.5) / side * n
    lower = place.floor()
    share = place - lower
    share = (share * share * (3 - 2 * share))[:, None]
    first = lattice[lower.long() % n]
    return first + share * (lattice[(lower.long() + 1) % n] - first)


def _mixed(share: Tensor, *colours: tuple[float, float, float]) -> Tensor:
    """Colours [3, H, W] along a line of colours, for shares [H, W] in 0..1."""
    stops = torch.tensor(colours)
    place = share.clamp(0, 1) * (len(stops) - 1)
    lower = place.floor().clamp(max=len(stops) - 2)
    part = (place - lower)[..., None]
    first, second = stops[lower.long()], stops[lower.long() + 1]
    return (first + part * (second - first)).movedim(-1, 0)


def _sharpened(x: Tensor, strength: float) -> Tensor:
    return ((x - 0.5) * strength + 0.5).clamp(0, 1)


_CELLS = (9, 9)
# Dark, middle and light of each: about equally light, so that light does not tell one from another.
_MATERIALS = {
    "foliage": ((0.23, 0.35, 0.16), (0.37, 0.56, 0.26), (0.56, 0.69, 0.48)),
    "sand": ((0.35, 0.28, 0.19), (0.57, 0.45, 0.31), (0.7, 0.61, 0.52)),
    "water": ((0.17, 0.33, 0.42), (0.27, 0.53, 0.68), (0.49, 0.67, 0.78)),
    "rock": ((0.3, 0.29, 0.27), (0.49, 0.47, 0.44), (0.64, 0.63, 0.61)),
    "sky": ((0.22, 0.3, 0.42), (0.36, 0.48, 0.68), (0.55, 0.64, 0.78)),
    "grass": ((0.29, 0.32, 0.14), (0.47, 0.52, 0.22), (0.63, 0.66, 0.45)),
    "earth": ((0.35, 0.28, 0.2), (0.57, 0.45, 0.33), (0.7, 0.61, 0.53)),
    "heath": ((0.33, 0.26, 0.32), (0.54, 0.42, 0.52), (0.68, 0.59, 0.66)),
}


def _made(name: str) -> Callable[[_Numbers, int], Tensor]:
    def make(numbers: _Numbers, side: int) -> Tensor:
        return _mixed(_sharpened(_noise(numbers, side, _CELLS, 2), 2.0), *_MATERIALS[name])

    return make


TEXTURES: dict[str, Callable[[_Numbers, int], Tensor]] = {name: _made(name) for name in _MATERIALS}
