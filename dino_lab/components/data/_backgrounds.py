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
OF_BACKGROUND = 3 * _OF_PIECE + 1


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
            _noise(_Numbers(seed, _FIRST_LINE + i), 2 * size, (4, 4), octaves=3)[None] for i in range(_LINES)
        ]
        self._lines = torch.stack(lines)  # [_LINES, 1, 2 size, 2 size] in 0..1
        self._size = size

    def draw(self, random: Tensor) -> Tensor:
        """Backgrounds [N, 3, H, W] in 0..1, by numbers [N, OF_BACKGROUND]."""
        one, other, line, level = random.split([_OF_PIECE, _OF_PIECE, _OF_PIECE, 1], 1)
        height = _pieces(self._lines, line) - 0.35 - 0.3 * level[..., None, None]  # 0 at the contour line
        share = (0.5 + self._size / 2 * height).clamp(0, 1)
        first = _pieces(self._textures, one)
        return first + share * (_pieces(self._textures, other) - first)


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


def _coordinates(side: int, cells: int) -> tuple[Tensor, Tensor]:
    line = (torch.arange(side) + 0.5) / side * cells
    return line.view(1, side), line.view(side, 1)


def _sky(numbers: _Numbers, side: int) -> Tensor:
    clouds = _sharpened(_noise(numbers, side, (4, 3), 3), 2.5)
    return _mixed(clouds, (0.42, 0.62, 0.85), (0.60, 0.75, 0.90), (0.93, 0.94, 0.95))


def _foliage(numbers: _Numbers, side: int) -> Tensor:
    leaves = _sharpened(_noise(numbers, side, (12, 12), 2), 2.2)
    return _mixed(leaves, (0.10, 0.20, 0.10), (0.25, 0.42, 0.18), (0.55, 0.66, 0.32))


def _grass(numbers: _Numbers, side: int) -> Tensor:
    blades = _sharpened(0.7 * _noise(numbers, side, (6, 32)) + 0.3 * _noise(numbers, side, (4, 4)), 2.2)
    return _mixed(blades, (0.20, 0.34, 0.12), (0.42, 0.56, 0.22), (0.68, 0.74, 0.40))


def _sand(numbers: _Numbers, side: int) -> Tensor:
    dunes = _sharpened(0.6 * _noise(numbers, side, (10, 4)) + 0.4 * _noise(numbers, side, (32, 32)), 1.8)
    return _mixed(dunes, (0.66, 0.54, 0.38), (0.80, 0.70, 0.52), (0.91, 0.84, 0.70))


def _water(numbers: _Numbers, side: int) -> Tensor:
    ripples = _sharpened(0.7 * _noise(numbers, side, (24, 6)) + 0.3 * _noise(numbers, side, (4, 4)), 2.2)
    return _mixed(ripples, (0.10, 0.27, 0.42), (0.22, 0.45, 0.58), (0.60, 0.76, 0.80))


def _stones(numbers: _Numbers, side: int) -> Tensor:
    """Cells about scattered points, dark where two of them meet."""
    cells = 8
    x, y = _coordinates(side, cells)
    points = numbers.take(2, cells, cells) * 0.8 + 0.1
    shades = numbers.take(cells, cells)
    row, column = y.floor().long(), x.floor().long()
    found = []
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            at = (row + i) % cells, (column + j) % cells
            p, q = column + j + points[0][at] - x, row + i + points[1][at] - y
            found.append(p * p + q * q)
    near = torch.stack(found).sort(0).values[:2].sqrt()
    which = torch.stack(found).argmin(0)
    shade = torch.stack(
        [shades[(row + i) % cells, (column + j) % cells] for i in (-1, 0, 1) for j in (-1, 0, 1)]
    )
    tone = 0.35 + 0.6 * shade.gather(0, which[None])[0]
    return _mixed(
        tone * (0.3 + 4 * (near[1] - near[0])).clamp(0, 1),
        (0.16, 0.15, 0.14),
        (0.52, 0.50, 0.47),
        (0.80, 0.77, 0.72),
    )


def _wall(numbers: _Numbers, side: int) -> Tensor:
    """Rows of bricks, every other row moved by half a brick."""
    rows, columns = 12, 6
    x, y = _coordinates(side, 1)
    y = y * rows
    row = y.floor()
    x = x * columns + 0.5 * (row % 2)
    column = x.floor()
    tone = 0.25 + 0.6 * numbers.take(rows, columns)[row.long() % rows, column.long() % columns]
    tone = tone + 0.3 * (_noise(numbers, side, (24, 24)) - 0.5)
    joint = torch.maximum(1 - 8 * (y - row), 1 - 14 * (x - column)).clamp(0, 1)
    bricks = _mixed(tone, (0.40, 0.22, 0.17), (0.62, 0.36, 0.28), (0.76, 0.55, 0.45))
    return bricks + joint * (torch.tensor([0.72, 0.70, 0.66]).view(3, 1, 1) - bricks)


def _wood(numbers: _Numbers, side: int) -> Tensor:
    """Boards with grain along them."""
    boards = 6
    x, _ = _coordinates(side, boards)
    board = x.floor()
    tone = 0.3 + 0.4 * numbers.take(boards)[board.long()] + 0.5 * (_noise(numbers, side, (6, 36), 1) - 0.5)
    tone = tone * (10 * (x - board)).clamp(0.2, 1)
    return _mixed(tone.expand(side, side), (0.22, 0.14, 0.08), (0.52, 0.37, 0.23), (0.76, 0.61, 0.43))


TEXTURES: dict[str, Callable[[_Numbers, int], Tensor]] = {
    "sky": _sky,
    "foliage": _foliage,
    "sand": _sand,
    "wall": _wall,
    "water": _water,
    "grass": _grass,
    "stones": _stones,
    "wood": _wood,
}
