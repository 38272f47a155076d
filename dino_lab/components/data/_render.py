"""Objects and blobs drawn onto pictures.

Coordinates of a picture run from -1 (left, top) to 1, so that a drawing is the same at every number of
pixels. At pixels only correctly rounded operations are used, so that it does not depend on its batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_lab.components.data._drawing import grid
from dino_lab.components.data._objects import CLASSES, DARK, MATERIALS, MOST_PARTS, PAINTS, PALE, Part
from dino_lab.components.data._outlines import box, disc, polygon

# About equally light, so that without colour objects of all paints look alike.
PALETTE = (
    *((0.92, 0.25, 0.22), (0.95, 0.45, 0.12), (0.83, 0.58, 0.10), (0.25, 0.62, 0.25), (0.10, 0.60, 0.58)),
    *((0.28, 0.48, 0.92), (0.60, 0.38, 0.85), (0.93, 0.38, 0.62), (0.66, 0.42, 0.25), (0.38, 0.60, 0.85)),
)
_MIDDLE, _CONTRAST = 0.48, (0.28, 0.42)  # of what is neither of a paint nor of a texture
_BLOBS = (disc(0, 0, 0.8), box(0, 0, 0.9, 0.5), polygon((0, -0.9), (0.85, 0.7), (-0.85, 0.7)))
_LINE = 0.055  # width over which parts are darker at their outline, in radii of the object
_RIM = 0.45  # how light they are at the outline itself
_STRETCH = 0.15  # of objects at most, wider and lower or narrower and higher
_TINT = 0.08  # lighter or darker than a colour of the palette, at most
OF_FRAME = 5  # numbers that decide where an object is
OF_OBJECT = 2 * PAINTS + 2 + 3 + 6 * MOST_PARTS  # numbers that decide what it looks like
OF_BLOB = 7  # numbers that decide a blob


@dataclass(frozen=True)
class Frame:
    """Coordinates [N, H, W] that turn and move with an object, and its radius [N, 1, 1] in half pictures."""

    x: Tensor
    y: Tensor
    radius: Tensor

    @staticmethod
    def of(
        size: int, random: Tensor, *, shift: float, rotation: float, radius: tuple[float, float], mirror: bool
    ) -> Frame:
        """Frames by numbers [N, OF_FRAME]: moved up to `shift`, turned up to `rotation`, sized in a range."""
        x, y = grid(size)
        move_x, move_y, turn, growth, side = random[..., None, None].unbind(1)  # [N, 1, 1]
        radii = radius[0] + (radius[1] - radius[0]) * growth
        angle = (rotation * signed(turn)).double()
        cosine, sine = angle.cos().float() / radii, angle.sin().float() / radii
        x, y = x - shift * signed(move_x), y - shift * signed(move_y)
        along = cosine * x + sine * y
        return Frame(
            torch.where(side < 0.5, -along, along) if mirror else along, cosine * y - sine * x, radii
        )


def signed(random: Tensor) -> Tensor:
    """0..1 to -1..1."""
    return random * 2 - 1


def draw_object(
    canvas: Tensor, parts: Tensor, name: str, frame: Frame, random: Tensor, jitter: float
) -> Tensor:
    """Canvas [N, 3, H, W] with an object of class `name` in front.

    Its parts are entered in `parts` [N, H, W]. `random` [N, OF_OBJECT] decides colours, proportions, light,
    and where parts are: up to `jitter` radii from their places.
    """
    half = canvas.shape[-1] / 2 * frame.radius  # of the object, in pixels
    colours, greys, proportions, places = random.split([2 * PAINTS, 2, 3, 6 * MOST_PARTS], 1)
    paints = torch.cat((_paints(colours), _greys(greys)), 1)  # so that PALE and DARK count from the end
    stretch, light_x, light_y = signed(proportions)[..., None, None].unbind(1)
    x, y = frame.x * (1 + _STRETCH * stretch), frame.y / (1 + _STRETCH * stretch)
    light = 1 + 0.2 * light_x * x.clamp(-1, 1) - (0.1 + 0.1 * light_y) * y.clamp(-1, 1)
    for i, part in enumerate(CLASSES[name]):
        own = places[:, 6 * i : 6 * i + 6, None, None]
        right, down, larger = (jitter * signed(own[:, :3])).unbind(1)
        u, v = (x - right) * (1 + larger), (y - down) * (1 + larger)
        distance = part.outline(u, v)
        alpha = (0.5 - distance * half).clamp(0, 1)
        rim = _RIM + (1 - _RIM) * (-distance / _LINE).clamp(0, 1)
        colour = _colour(part, paints, u + own[:, 3], v + own[:, 4], own[:, 5] < 0.5) * (light * rim)[:, None]
        canvas = canvas + alpha[:, None] * (colour - canvas)
        parts[alpha >= 0.5] = i + 1
    return canvas


def draw_blob(canvas: Tensor, kind: int, random: Tensor) -> Tensor:
    """Canvas [N, 3, H, W] with a small shape of one colour, or none, by numbers [N, OF_BLOB]."""
    where, colour, there = random.split([OF_FRAME, 1, 1], 1)
    frame = Frame.of(canvas.shape[-1], where, shift=1.0, rotation=math.pi, radius=(0.08, 0.24), mirror=False)
    distance = _BLOBS[kind % len(_BLOBS)](frame.x, frame.y) * frame.radius * (canvas.shape[-1] / 2)
    alpha = (0.5 - distance).clamp(0, 1) * (there < 0.7)[..., None]
    paint = _paints(colour.expand(-1, 2))[:, 0, :, None, None] * (0.8 - 0.25 * frame.y.clamp(-1, 1))[:, None]
    return canvas + alpha[:, None] * (paint - canvas)


def _paints(random: Tensor) -> Tensor:
    """Different colours of the palette [N, n, 3], and lighter or darker, by numbers [N, 2 n]."""
    which, tint = random.chunk(2, 1)
    taken = torch.empty(len(random), 0, dtype=torch.int64)
    for i in range(which.shape[1]):
        at = (which[:, i] * (len(PALETTE) - i)).long()
        for other in taken.sort(1).values.unbind(1):  # each colour that is taken moves the later ones up
            at = at + (at >= other)
        taken = torch.cat((taken, at[:, None]), 1)
    return torch.tensor(PALETTE)[taken] * (1 + _TINT * signed(tint))[..., None]


def _greys(random: Tensor) -> Tensor:
    """PALE and DARK [N, 2, 3], which change places in half of the objects: light does not tell the class."""
    low, high = _CONTRAST
    step = torch.where(random[:, :1] < 0.5, -1.0, 1.0) * (low + (high - low) * random[:, 1:])
    return (_MIDDLE + torch.cat((step, -step), 1))[..., None].expand(-1, 2, 3)


def _colour(part: Part, paints: Tensor, x: Tensor, y: Tensor, pale: Tensor) -> Tensor:
    """[N, 3, 1, 1] or, of a pattern in a paint and PALE where `pale` [N, 1, 1], else DARK, [N, 3, H, W]."""
    first = paints[:, part.paint, :, None, None]
    pattern = MATERIALS[part.material]
    if pattern is None:
        return first
    second = torch.where(pale[:, None], paints[:, PALE, :, None, None], paints[:, DARK, :, None, None])
    return first + pattern(x, y)[:, None] * (second - first)
