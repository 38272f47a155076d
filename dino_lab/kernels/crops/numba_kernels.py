"""Views on the CPU, compiled by Numba: crops are cut one after the other, and changed one after the other.

So a crop stays in the cache of its core, and only crops that drew an operation pay for it. All of it is in
one file, because Numba notices a change only in the file of the function that is called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy
from numba import njit
from numpy import float32

Array = numpy.ndarray[Any, Any]
Function = TypeVar("Function", bound=Callable[..., Any])

BLOCK = 1024  # pixels that a colour operation works on at once
BLURRED = 4096  # pixels that are blurred at once
LANES = 64  # rows that are made columns at once: with more they leave the cache
VECTOR = 16  # numbers that one instruction may work on: of a multiple of them none is left over
TAPS, PAIRS = 4, 3  # rows, and pairs of rows, that are added in one pass: `_resize` and `_convolve` name each
STEPS = 7  # of the jitter: three blends, the hue, three blends; see `colour.jitter`
HUE = 3
LEAST = 1e-9  # of a blur's kernel, relative to its middle: less does not reach a float32
ZERO, ONE, HALF, SIXTH = float32(0), float32(1), float32(1 / 2), float32(1 / 6)
RED, GREEN, BLUE = float32(0.299), float32(0.587), float32(0.114)  # of the luma, ITU-R BT.601
CLOSE_TO_256 = float32(255.5)
LEVEL = float32(1 / 255)

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    # Values are finite, since they come from bytes and checked parameters. No other freedom is given: crops
    # are the same bits however the compiler merged and split the loops, which is not always alike.
    "fastmath": {"nnan", "nsz"},
}


def compiled(function: Function) -> Function:
    """Compile for this processor, once for all processes where there is a folder to keep it in."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written
        return njit(**OPTIONS)(function)


def inner(function: Function) -> Function:
    """Compile with the kernel that calls it."""
    return njit(**OPTIONS)(function)


@compiled
def cut(
    first: int,
    last: int,
    pixels: Array,
    image_places: Array,
    sizes: Array,
    boxes: Array,
    flipped: Array,
    crops: Array,
) -> None:
    """Fill crops `first` to `last` of float32 [N, C, size, size] in 0..1 from B images, laid out in `pixels`.

    `pixels`, `image_places` and `sizes` are those of `types.WholeImages`, `boxes` int32 [N, 4], `flipped`
    bool [N]; crop n is of image n % B. As Pillow's `crop` and
    `resize(BICUBIC)`, in whole grey levels. Rows are added up, of all channels at once, because their numbers
    lie side by side: for the width, which comes first, columns are made rows and then columns again.
    """
    B, C, size = len(image_places), crops.shape[1], crops.shape[3]
    H, W = sizes[:, 0].max(), sizes[:, 1].max()
    most = _whole(2 + math.ceil(4 * max(1.0, max(H, W) / size)), TAPS)
    places, weights = numpy.empty(size, numpy.int32), numpy.empty((most, size), float32)
    totals = numpy.empty(size, numpy.float64)
    source, columns = numpy.zeros(LANES * W, float32), numpy.zeros((W + most) * LANES, float32)
    narrow = numpy.empty(size * LANES, float32)
    rows, low = numpy.zeros((H + most, C, size), float32), numpy.empty((size, C * size), float32)
    for n in range(first, last):
        top, left, h, w = boxes[n]
        height, width = sizes[n % B]
        image = pixels[image_places[n % B] :][: C * height * width].reshape(C, height, width)
        taps = _weights(w, size, flipped[n], places, weights, totals)
        for y in range(0, h, LANES // C):
            count = min(LANES // C, h - y)
            lanes = _whole(C * count, VECTOR)
            strip, to = columns[: (w + taps) * lanes].reshape(w + taps, lanes), narrow[: size * lanes]
            _to_floats(image, top + y, count, source)
            _transpose(source[: lanes * width].reshape(lanes, width)[:, left : left + w], strip[:w])
            _resize(strip, places, weights, taps, to.reshape(size, lanes))
            for i in range(to.shape[0]):
                to[i] = _level(to[i])
            for c in range(C):
                part = to.reshape(size, lanes)[:, c * count : (c + 1) * count]
                _transpose(part, rows[y : y + count, c])
        taps = _weights(h, size, False, places, weights, totals)
        _resize(rows.reshape(H + most, C * size), places, weights, taps, low)
        for c in range(C):
            for y in range(size):
                row = low[y, c * size : (c + 1) * size]
                for x in range(size):
                    crops[n, c, y, x] = _level(row[x]) * LEVEL


@inner
def _whole(count: int, of: int) -> int:
    """The least multiple of `of` that is not below `count`."""
    return (count + of - 1) // of * of


@inner
def _level(x: float32) -> float32:
    """The grey level of a sum to which a half was added."""
    return numpy.floor(min(max(x, ZERO), CLOSE_TO_256))


@inner
def _weights(length: int, size: int, flip: bool, places: Array, weights: Array, totals: Array) -> int:
    """Of each target pixel, the first source pixel and weights [taps, size] from there on; how many taps.

    Cubic convolution with a = -1/2 (Keys, 1981), widened by the factor of the reduction as Pillow does. Taps
    that make their number a multiple of `TAPS` have weight 0.
    """
    step = length / size
    spread = max(step, 1.0)
    begin, sign = (size - 0.5, -1) if flip else (0.5, 1)
    taps = 0
    for x in range(size):
        centre = (begin + sign * x) * step
        places[x], totals[x] = max(0, numpy.int32(centre - 2 * spread + 0.5)), 0
        taps = max(taps, min(length, numpy.int32(centre + 2 * spread + 0.5)) - places[x])
    taps = _whole(taps, TAPS)
    for k in range(taps):
        for x in range(size):
            source = places[x] + k
            away = abs((source + 0.5 - (begin + sign * x) * step) / spread)
            near = (1.5 * away - 2.5) * away * away + 1
            far = ((-0.5 * away + 2.5) * away - 4) * away + 2
            weight = near if away < 1 else far
            weights[k, x] = weight = weight if away < 2 and source < length else 0.0
            totals[x] += weight
    for k in range(taps):
        for x in range(size):
            weights[k, x] /= totals[x]
    return taps


@inner
def _to_floats(image: Array, top: int, count: int, to: Array) -> None:
    """Rows `top` to `top + count` of each channel; whole, because many short loops would take longer."""
    C, _, W = image.shape
    for c in range(C):
        some = image[c].reshape(image[c].size)[top * W : (top + count) * W]
        part = to[c * count * W : (c + 1) * count * W]
        for i in range(part.shape[0]):
            part[i] = some[i]


@inner
def _transpose(x: Array, to: Array) -> None:
    # Read with gaps, written without: the other way takes longer.
    for i in range(to.shape[0]):
        for j in range(to.shape[1]):
            to[i, j] = x[j, i]


@inner
def _resize(rows: Array, places: Array, weights: Array, taps: int, to: Array) -> None:
    """Fill row x of `to` with the sum of a half and `taps` rows from `places[x]` on, times their weights."""
    for x in range(to.shape[0]):
        for k in range(0, taps, TAPS):
            at = places[x] + k
            a, b, c, d = weights[k, x], weights[k + 1, x], weights[k + 2, x], weights[k + 3, x]
            for i in range(to.shape[1]):
                total = to[x, i] if k else HALF
                total += a * rows[at, i]
                total += b * rows[at + 1, i]
                total += c * rows[at + 2, i]
                to[x, i] = total + d * rows[at + 3, i]


@compiled
def change(
    first: int,
    last: int,
    crops: Array,
    blends: Array,
    hue_shift: Array,
    grey: Array,
    blurred: Array,
    sigma: Array,
    solarized: Array,
    largest_radius: int,
) -> None:
    """Colour, blur and solarize crops `first` to `last` of [N, C, size, size] where they are.

    The arrays are those of `sampled.SampledParameters`; kernels of the blur have at most `largest_radius`
    pixels to each side.
    """
    _, C, size, _ = crops.shape
    kernel = numpy.empty(_whole(largest_radius + 1, PAIRS), float32)
    width = size + 2 * kernel.shape[0]
    padded, sums = numpy.empty(LANES * width, float32), numpy.empty(LANES * size, float32)
    luma, rows = numpy.empty(BLOCK, float32), numpy.empty((width, size), float32)
    for n in range(first, last):
        _colour(crops[n].reshape(C, size * size), blends[n], hue_shift[n], grey[n], luma)
        if blurred[n]:
            radius = _gaussian(sigma[n], largest_radius, kernel)
            for c in range(C):
                _blur(crops[n, c], kernel, radius, padded, sums, rows)
        if solarized[n]:
            pixels = crops[n].reshape(C * size * size)
            for i in range(pixels.shape[0]):
                pixels[i] = min(pixels[i], ONE - pixels[i])


@inner
def _colour(crop: Array, blends: Array, hue_shift: float32, grey: bool, luma: Array) -> None:
    """Jitter and take the colour from a crop [C, pixels]; only the contrast has to see all of it before."""
    C, pixels = crop.shape
    contrast = STEPS
    for step in range(STEPS):
        if step != HUE and blends[step - (step > HUE), 1] != 0:
            contrast = step
    mean = ZERO
    if contrast < STEPS:
        # One for each place in a block, so that their order does not depend on the compiler.
        sums = numpy.zeros(min(BLOCK, pixels), float32)
        for start in range(0, pixels, BLOCK):
            part = slice(start, min(start + BLOCK, pixels))
            for step in range(contrast):
                if _changes(step, blends, hue_shift, C):
                    _jitter(crop, part, step, blends, hue_shift, mean, luma)
            _luma(crop, part, luma)
            for i in range(part.stop - start):
                sums[i] += luma[i]
        mean = float32(sums.astype(numpy.float64).sum() / pixels)
    for start in range(0, pixels, BLOCK):
        part = slice(start, min(start + BLOCK, pixels))
        for step in range(contrast % STEPS, STEPS):
            if _changes(step, blends, hue_shift, C):
                _jitter(crop, part, step, blends, hue_shift, mean, luma)
        if grey:
            _blend(crop, part, ZERO, ONE, ZERO, luma)


@inner
def _changes(step: int, blends: Array, hue_shift: float32, C: int) -> bool:
    """Whether a step of the jitter does anything; asked first, because a call takes longer."""
    return hue_shift != 0 and C == 3 if step == HUE else blends[step - (step > HUE), 0] != 1


@inner
def _jitter(
    x: Array, part: slice, step: int, blends: Array, hue_shift: float32, mean: float32, luma: Array
) -> None:
    if step == HUE:
        # Rows are cut, not the whole: Numba knows of these that their pixels lie side by side.
        _shift_hue(x[0, part], x[1, part], x[2, part], hue_shift)
    else:
        of_x, of_mean, of_luma = blends[step - (step > HUE)]
        _blend(x, part, of_x, of_luma, of_mean * mean, luma)


@inner
def _luma(x: Array, part: slice, luma: Array) -> None:
    if x.shape[0] == 1:
        luma[: part.stop - part.start] = x[0, part]
    else:
        red, green, blue = x[0, part], x[1, part], x[2, part]
        for i in range(red.shape[0]):
            luma[i] = RED * red[i] + GREEN * green[i] + BLUE * blue[i]


@inner
def _blend(x: Array, part: slice, of_x: float32, of_luma: float32, constant: float32, luma: Array) -> None:
    _luma(x, part, luma)
    for c in range(x.shape[0]):
        channel = x[c, part]
        for i in range(channel.shape[0]):
            channel[i] = min(max(of_x * channel[i] + of_luma * luma[i] + constant, ZERO), ONE)


@inner
def _shift_hue(r: Array, g: Array, b: Array, hue_shift: float32) -> None:
    """As `colour.shift_hue`."""
    for i in range(r.shape[0]):
        red, green, blue = r[i], g[i], b[i]
        value, lowest = max(max(red, green), blue), min(min(red, green), blue)
        chroma = value - lowest
        hue = ((green + blue - red - lowest) / max(chroma, float32(1e-8)) + ONE) * SIXTH
        hue = (hue if green >= blue else -hue) + hue_shift
        r[i] = value - chroma * _near(hue + HALF)
        g[i] = value - chroma * _near(hue + SIXTH)
        b[i] = value - chroma * _near(hue - SIXTH)


@inner
def _near(turns: float32) -> float32:
    """1 within a sixth of a whole turn, from there falling to 0 at a third."""
    away = abs(turns - numpy.floor(turns + HALF))
    return min(max(float32(2) - float32(6) * away, ZERO), ONE)


@inner
def _gaussian(sigma: float, largest_radius: int, kernel: Array) -> int:
    """Half of a kernel from its middle on, which is halved: it is its own pair; and where the kernel ends.

    Weights that make the number of pairs a multiple of `PAIRS` are 0.
    """
    total, radius = 0.0, 0
    for k in range(largest_radius + 1):
        weight = math.exp(-0.5 * (k / sigma) ** 2)
        if weight > LEAST:
            kernel[k], radius = weight, k
            total += 2 * weight if k else weight
    for k in range(radius + 1):
        kernel[k] /= total
    kernel[0] *= HALF
    whole = _whole(radius + 1, PAIRS)
    kernel[radius + 1 : whole] = 0
    return whole - 1


@inner
def _blur(x: Array, kernel: Array, radius: int, padded: Array, sums: Array, rows: Array) -> None:
    """Blur [size, size]; edges repeat. Along its rows first: some at a time are made columns."""
    size, width = x.shape[0], x.shape[0] + 2 * radius
    for y in range(0, size, LANES):
        count = min(LANES, size - y)
        columns, to = padded[: width * count].reshape(width, count), sums[: size * count]
        _transpose(x[y : y + count], columns[radius : radius + size])
        _blur_columns(columns, kernel, radius, to)
        _transpose(to.reshape(size, count), rows[radius + y : radius + y + count])
    _blur_columns(rows[:width], kernel, radius, x.reshape(x.size))


@inner
def _blur_columns(x: Array, kernel: Array, radius: int, to: Array) -> None:
    """Fill `to` [size * count] from [size + 2 * radius, count], filling its outer rows with the edges."""
    first, last, step = radius, x.shape[0] - radius - 1, x.shape[1]
    for y in range(radius):
        for i in range(step):
            x[y, i], x[last + 1 + y, i] = x[first, i], x[last, i]
    flat = x.reshape(x.size)
    for start in range(0, to.shape[0], BLURRED):
        _convolve(flat[start:], step, kernel, radius, to[start : start + BLURRED])


@inner
def _convolve(source: Array, step: int, kernel: Array, radius: int, to: Array) -> None:
    """Fill `to` with sums of what lies up to `radius` steps before and after the middle of `source`."""
    for k in range(0, radius + 1, PAIRS):
        a, b, c = kernel[k], kernel[k + 1], kernel[k + 2]
        before_a, after_a = source[(radius - k) * step :], source[(radius + k) * step :]
        before_b, after_b = source[(radius - k - 1) * step :], source[(radius + k + 1) * step :]
        before_c, after_c = source[(radius - k - 2) * step :], source[(radius + k + 2) * step :]
        for i in range(to.shape[0]):
            total = to[i] if k else ZERO
            total += a * (before_a[i] + after_a[i])
            total += b * (before_b[i] + after_b[i])
            to[i] = total + c * (before_c[i] + after_c[i])
