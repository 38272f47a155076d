"""Crops on a GPU, compiled by Triton: one program cuts a crop and colours it, two more launches blur.

A crop is read from the image where it is needed and written once; only crops that drew a blur are read
again. The numbers are those of `by_batch`, up to rounding. Triton reads these functions itself, and no
annotations in them but its own; the columns of a crop's parameters are those of `by_program`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def make_crops(
    images,  # uint8, one after the other
    parameters,  # float32 [N, 30]: box 4, flip, blends 18, hue, grey, solarize, image's place 2 and size 2
    crops,  # float32 [N, C, size, size]; read, too, where nothing is cut
    size,
    C: tl.constexpr,
    CUT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Crop n: cut, jitter, grey, solarize."""
    n = tl.program_id(0)
    row = parameters + n * 30
    image = images + tl.load((row + 26).to(tl.pointer_type(tl.int64)))
    H, W = tl.load(row + 28).to(tl.int32), tl.load(row + 29).to(tl.int32)
    crop = crops + n.to(tl.int64) * C * size * size
    pixels = size * size
    contrast = 6
    for k in tl.static_range(6):
        contrast = tl.where(tl.load(row + 5 + 3 * k + 1) != 0, k, contrast)
    mean = tl.full([], 0.0, tl.float32)
    if contrast < 6:
        sums = tl.zeros([BLOCK], tl.float32)
        for start in range(0, pixels, BLOCK):
            p = start + tl.arange(0, BLOCK)
            r, g, b = _read(image, row, crop, p, pixels, H, W, size, C, CUT)
            r, g, b = _jitter(r, g, b, row, contrast, 0.0, C)
            sums += tl.where(p < pixels, _luma(r, g, b, C), 0.0)
        mean = tl.sum(sums) / pixels
    is_grey, solarized = tl.load(row + 24), tl.load(row + 25)
    for start in range(0, pixels, BLOCK):
        p = start + tl.arange(0, BLOCK)
        r, g, b = _read(image, row, crop, p, pixels, H, W, size, C, CUT)
        r, g, b = _jitter(r, g, b, row, 6, mean, C)
        if is_grey != 0:
            r, g, b = _blend(r, g, b, 0.0, 0.0, 1.0, C)
        if solarized != 0:
            r, g, b = tl.minimum(r, 1 - r), tl.minimum(g, 1 - g), tl.minimum(b, 1 - b)
        tl.store(crop + p, r, mask=p < pixels)
        if C == 3:
            tl.store(crop + pixels + p, g, mask=p < pixels)
            tl.store(crop + 2 * pixels + p, b, mask=p < pixels)


@triton.jit
def _read(image, row, crop, p, pixels, H, W, size, C: tl.constexpr, CUT: tl.constexpr):
    """Pixels p of the crop, cut from the image or read where it was written."""
    if CUT:
        r, g, b = _cut(image, row, p, H, W, size, C)
    else:
        inside = p < pixels
        r = tl.load(crop + p, mask=inside, other=0.0)
        g, b = r, r
        if C == 3:
            g = tl.load(crop + pixels + p, mask=inside, other=0.0)
            b = tl.load(crop + 2 * pixels + p, mask=inside, other=0.0)
    return r, g, b


@triton.jit
def _cut(image, row, p, H, W, size, C: tl.constexpr):
    """As `resize.resample`: cubic, widened where it reduces, clamped after each direction."""
    top, left = tl.load(row), tl.load(row + 1)
    height, width = tl.load(row + 2), tl.load(row + 3)
    p = tl.minimum(p, size * size - 1)  # what lies behind the crop is not written
    x = p % size
    x = tl.where(tl.load(row + 4) != 0, size - 1 - x, x)
    step_y, step_x = height / size, width / size
    spread_y, spread_x = tl.maximum(step_y, 1.0), tl.maximum(step_x, 1.0)
    centre_y, centre_x = top + (p // size + 0.5) * step_y, left + (x + 0.5) * step_x
    first_y, first_x = tl.floor(centre_y - 2 * spread_y), tl.floor(centre_x - 2 * spread_x)
    taps_y, taps_x = tl.ceil(4 * spread_y).to(tl.int32) + 1, tl.ceil(4 * spread_x).to(tl.int32) + 1
    zero = tl.zeros_like(centre_x)
    r, g, b, total_y = zero, zero, zero, zero
    for j in range(taps_y):
        y = first_y + j
        weight_y = _cubic((y + 0.5 - centre_y) / spread_y)
        weight_y = tl.where((y >= top) & (y < top + height), weight_y, 0.0)
        line_r, line_g, line_b, total_x = zero, zero, zero, zero
        for i in range(taps_x):
            at = first_x + i
            weight = _cubic((at + 0.5 - centre_x) / spread_x)
            inside = (at >= left) & (at < left + width)
            weight = tl.where(inside, weight, 0.0)
            inside = inside & (weight_y != 0)
            place = image + y.to(tl.int32) * W + at.to(tl.int32)
            line_r += weight * tl.load(place, mask=inside, other=0).to(tl.float32)
            if C == 3:
                line_g += weight * tl.load(place + H * W, mask=inside, other=0).to(tl.float32)
                line_b += weight * tl.load(place + 2 * H * W, mask=inside, other=0).to(tl.float32)
            total_x += weight
        scale = 1 / (255.0 * total_x)
        r += weight_y * _unit(line_r * scale)
        if C == 3:
            g += weight_y * _unit(line_g * scale)
            b += weight_y * _unit(line_b * scale)
        total_y += weight_y
    r = _unit(r / total_y)
    if C == 3:
        g, b = _unit(g / total_y), _unit(b / total_y)
    else:
        g, b = r, r
    return r, g, b


@triton.jit
def _cubic(away):
    """Cubic convolution with a = -1/2 (Keys, 1981)."""
    away = tl.abs(away)
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return tl.where(away < 1, near, tl.where(away < 2, far, 0.0))


@triton.jit
def _unit(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _luma(r, g, b, C: tl.constexpr):
    """ITU-R BT.601; of a grey image the image itself."""
    luma = r
    if C == 3:
        luma = 0.299 * r + 0.587 * g + 0.114 * b
    return luma


@triton.jit
def _blend(r, g, b, of_x, constant, of_luma, C: tl.constexpr):
    other = constant + of_luma * _luma(r, g, b, C)
    return _unit(of_x * r + other), _unit(of_x * g + other), _unit(of_x * b + other)


@triton.jit
def _jitter(r, g, b, row, end, mean, C: tl.constexpr):
    """The blends before `end`, and the hue where `end` lies behind it: see `colour.jitter`."""
    for k in tl.static_range(6):
        if C == 3 and k == 3:
            shift = tl.load(row + 23)
            if (shift != 0) & (end >= 3):
                r, g, b = _shift_hue(r, g, b, shift)
        of_x, of_mean = tl.load(row + 5 + 3 * k), tl.load(row + 5 + 3 * k + 1)
        if (of_x != 1) & (k < end):
            r, g, b = _blend(r, g, b, of_x, of_mean * mean, tl.load(row + 5 + 3 * k + 2), C)
    return r, g, b


@triton.jit
def _shift_hue(r, g, b, shift):
    """As `colour.shift_hue`."""
    value, lowest = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = value - lowest
    hue = ((g + b - r - lowest) / tl.maximum(chroma, 1e-8) + 1) / 6
    hue = tl.where(g >= b, hue, -hue) + shift
    return (
        value - chroma * _near(hue + 1 / 2),
        value - chroma * _near(hue + 1 / 6),
        value - chroma * _near(hue - 1 / 6),
    )


@triton.jit
def _near(turns):
    """1 within a sixth of a whole turn, from there falling to 0 at a third."""
    return _unit(2 - 6 * tl.abs(turns - tl.floor(turns + 0.5)))


@triton.jit
def blur_lines(
    crops,  # float32 [N, C, size, size]
    between,  # float32 [K, C, size, size]
    drawn,  # float32 [K, 3]: which crop, sigma, whether it is solarized
    size,
    largest_radius,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gaussian blur of the drawn crops: along their rows into `between`, along columns back and solarized."""
    k, c = tl.program_id(0) // C, tl.program_id(0) % C
    pixels = size * size
    n = tl.load(drawn + 3 * k).to(tl.int64)
    sigma, solarized = tl.load(drawn + 3 * k + 1), tl.load(drawn + 3 * k + 2)
    crop, lines = crops + (n * C + c) * pixels, between + (k.to(tl.int64) * C + c) * pixels
    p = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = p // size, p % size
    # Beyond 6.5 standard deviations a weight does not reach a float32.
    radius = tl.minimum(largest_radius, tl.ceil(6.5 * sigma).to(tl.int32))
    total, weights = tl.zeros([BLOCK], tl.float32), tl.full([], 0.0, tl.float32)
    for tap in range(-radius, radius + 1):
        weight = tl.exp(-0.5 * (tap / sigma) * (tap / sigma))
        if ROWS:
            at = y * size + tl.minimum(tl.maximum(x + tap, 0), size - 1)
            total += weight * tl.load(crop + at, mask=p < pixels, other=0.0)
        else:
            at = tl.minimum(tl.maximum(y + tap, 0), size - 1) * size + x
            total += weight * tl.load(lines + at, mask=p < pixels, other=0.0)
        weights += weight
    total = total / weights
    if ROWS:
        tl.store(lines + p, total, mask=p < pixels)
    else:
        total = tl.where(solarized != 0, tl.minimum(total, 1 - total), total)
        tl.store(crop + p, total, mask=p < pixels)
