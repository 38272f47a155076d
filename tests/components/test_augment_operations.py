"""Every operation against Pillow (as torchvision calls it) and against Kornia, with the same parameters."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as F

from dino_lab.kernels.crops import by_batch, by_crop, resize
from dino_lab.kernels.crops.blur import gaussian_blur, kernel_radius
from dino_lab.kernels.crops.colour import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    blend,
    grayscale,
    in_order,
    jitter,
    luma,
    shift_hue,
    solarize,
)
from dino_lab.kernels.crops.resize import resample, sample_boxes
from dino_lab.kernels.crops.sampled import SampledParameters

ROUNDING = 1 / 255  # Pillow keeps whole grey levels
Box = tuple[int, int, int, int]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Colour gradients, hard edges and texture, as photographs have them."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    image = torch.stack([x, y, 1 - x * y])
    image[:, (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.05] = torch.tensor([0.9, 0.2, 0.1])[:, None]
    image[:, (x > 0.7) & (y < 0.3)] = 0.0
    image += 0.08 * torch.randn(3, height, width, generator=generator)
    return F.to_pil_image(image.clamp(0, 1))


def tensor(*images: Image.Image) -> Tensor:
    return torch.stack([F.pil_to_tensor(image) for image in images]).float() / 255


def difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    error = (ours - theirs).abs()
    return float(error.mean()), float(error.max())


def boxes_of(H: int, W: int) -> list[Box]:
    return [(0, 0, H, W), (3, 5, H - 3, W - 5), (1, 2, H // 2, W // 3), (4, 1, 5, 6)]


def thin(H: int, W: int) -> list[Box]:
    """Of a row, a column and a pixel, with a large box before and after them."""
    return [(0, 0, H, W), (H - 1, 0, 1, W), (0, W - 1, H, 1), (H - 1, W - 1, 1, 1), (0, 0, H, W)]


@pytest.mark.parametrize("shape", [(32, 32), (160, 213), (37, 61)])
@pytest.mark.parametrize("size", [32, 17])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("few", [0, 1000], ids=["sorted", "all"])
def test_crop_is_pillows(
    shape: tuple[int, int], size: int, flip: bool, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize, "FEW", few)
    image, boxes = picture(*shape), torch.tensor(boxes_of(*shape)).float()[:, None]
    ours = resample(tensor(image), boxes, torch.full((len(boxes), 1), flip), size)
    for crop, theirs in zip(ours, cut(image, size, flip, boxes_of(*shape)), strict=True):
        mean, largest = difference(crop, tensor(theirs))
        assert mean < 0.5 * ROUNDING
        assert largest < 2 * ROUNDING


@pytest.mark.parametrize("shape", [(32, 32), (160, 213), (37, 61)])
@pytest.mark.parametrize("size", [1, 32, 17, 90])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("kind", "share"), [(boxes_of, 0.004), (thin, 0.02)], ids=["large", "thin"])
def test_crop_on_the_cpu_is_pillows(
    shape: tuple[int, int],
    size: int,
    flip: bool,
    mode: str,
    kind: Callable[[int, int], list[Box]],
    share: float,
) -> None:
    """All levels but a few that lie in the middle between two; each pass may move one."""
    image, boxes = picture(*shape).convert(mode), torch.tensor(kind(*shape)).float()[:, None]
    drawn = nothing(len(boxes), boxes=boxes, flipped=torch.full((len(boxes), 1), flip))
    ours = by_crop.make(F.pil_to_tensor(image)[None], drawn, size, 0)
    for crop, theirs in zip(ours, cut(image, size, flip, kind(*shape)), strict=True):
        mean, largest = difference(crop, tensor(theirs))
        assert mean < share * ROUNDING
        assert largest < 2.1 * ROUNDING


def cut(image: Image.Image, size: int, flip: bool, boxes: list[Box]) -> list[Image.Image]:
    """By Pillow."""
    crops = [
        F.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC, antialias=True) for box in boxes
    ]
    return [F.hflip(crop) if flip else crop for crop in crops]


def nothing(V: int, **changed: Tensor) -> SampledParameters:
    """What leaves an image of 32 pixels as it is V times, but for what is given."""
    plain: dict[str, Tensor | None] = dict.fromkeys(field.name for field in fields(SampledParameters))
    plain["boxes"] = torch.tensor([0.0, 0.0, 32.0, 32.0]).expand(V, 1, 4)
    plain["flipped"] = torch.zeros(V, 1, dtype=torch.bool)
    return SampledParameters(**plain | changed)


def colours(**changed: float) -> dict[str, Tensor]:
    """Blends and hue shifts [24, 1, ...]: one for each order of the four."""
    orders = list(itertools.permutations(range(4)))
    keys = torch.tensor([[order.index(i) / 4 for i in range(4)] for order in orders])
    factors = torch.tensor([changed.get(name, 1.0) for name in ("brightness", "contrast", "saturation")])
    blends = in_order(factors.expand(24, 3), keys)
    return {"blends": blends[:, None], "hue_shift": torch.full((24, 1), changed.get("hue", 0.0))}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        colours(brightness=1.4),
        colours(contrast=0.6),
        colours(saturation=0.5),
        colours(hue=0.3),
        colours(hue=-0.5),
        colours(brightness=1.3, contrast=1.4, saturation=0.7, hue=0.1),
        colours(brightness=0.7, contrast=0.0, saturation=1.2, hue=-0.1),
        {"grey": torch.tensor([[True], [False]])},
        {"solarized": torch.tensor([[True], [False]])},
        {"blurred": torch.tensor([[True], [True], [False]]), "sigma": torch.tensor([[0.1], [2.0], [1.0]])},
        {"blurred": torch.ones(1, 1, dtype=torch.bool), "sigma": torch.ones(1, 1), "angle": torch.ones(1, 1)},
        colours(contrast=1.4, hue=0.1)
        | {name: torch.ones(24, 1, dtype=torch.bool) for name in ("grey", "blurred", "solarized")}
        | {"sigma": torch.linspace(0.2, 1.9, 24)[:, None]},
    ],
)
@pytest.mark.parametrize("C", [1, 3])
def test_operations_on_the_cpu_are_those_of_a_gpu(changed: dict[str, Tensor], C: int) -> None:
    """At the size of the image, where neither rounds."""
    image = F.pil_to_tensor(picture(32, 32))[None, :C]
    V = max((len(part) for part in changed.values()), default=1)
    one, other = (way.make(image, nothing(V, **changed), 32, 8) for way in (by_crop, by_batch))
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


@pytest.mark.parametrize("size", [1, 5, 32, 70])
@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 9])
def test_blur_on_the_cpu_ends_where_that_of_a_gpu_does(size: int, radius: int) -> None:
    """A kernel that is cut off, one that ends before, and crops that it is larger than."""
    image = F.pil_to_tensor(picture(size, size))[None]
    drawn = nothing(3, blurred=torch.ones(3, 1, dtype=torch.bool), sigma=torch.tensor([[0.3], [0.8], [2.0]]))
    drawn = replace(drawn, boxes=torch.tensor([0.0, 0.0, size, size]).expand(3, 1, 4))
    one, other = (way.make(image, drawn, size, radius) for way in (by_crop, by_batch))
    torch.testing.assert_close(one, other, rtol=0, atol=3e-6)


def test_large_crops_on_the_cpu_are_those_of_a_gpu() -> None:
    """More pixels than a colour operation works on at once, and more lines than a blur."""
    image = F.pil_to_tensor(picture(75, 75))[None]
    drawn = nothing(24, **colours(brightness=1.2, contrast=0.7, saturation=0.7, hue=0.1))
    drawn = replace(
        drawn,
        boxes=torch.tensor([0.0, 0.0, 75.0, 75.0]).expand(24, 1, 4),
        blurred=torch.ones(24, 1, dtype=torch.bool),
        sigma=torch.linspace(0.1, 2.0, 24)[:, None],
    )
    one, other = (way.make(image, drawn, 75, 8) for way in (by_crop, by_batch))
    torch.testing.assert_close(one, other, rtol=0, atol=5e-6)


def test_crop_without_antialias_would_differ() -> None:
    """The bound above tells the two apart."""
    image = picture(160, 160)
    plain = torch.nn.functional.interpolate(tensor(image), 32, mode="bicubic").clamp(0, 1)
    theirs = F.resize(image, [32, 32], InterpolationMode.BICUBIC, antialias=True)
    assert difference(plain, tensor(theirs))[0] > 4 * ROUNDING


@pytest.mark.parametrize("shape", [(90, 140), (256, 256), (32, 32)])
@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.4, 1.0)])
def test_boxes_are_torchvisions(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    H, W = shape
    ours = sample_boxes((4, 5000), H, W, scale, torch.Generator().manual_seed(0)).view(-1, 4)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        image = torch.empty(3, H, W)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(5000)]
        )
    for statistic in (
        lambda box: box[:, 2] * box[:, 3] / (H * W),
        lambda box: (box[:, 3] / box[:, 2]).log(),
        lambda box: (box[:, 0] + box[:, 2] / 2) / H,
        lambda box: (box[:, 1] + box[:, 3] / 2) / W,
    ):
        a, b = statistic(ours), statistic(theirs.float())
        error = (a.var() / len(a) + b.var() / len(b)).sqrt()
        assert abs(a.mean() - b.mean()) < 4 * error
        assert 0.95 < a.std() / b.std() < 1.05
    top, left, h, w = ours.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h).max() == H
    assert (left + w).max() == W
    assert torch.equal(ours, ours.round())


def test_box_where_no_try_fits_is_torchvisions() -> None:
    for H, W in ((10, 100), (100, 10)):
        box = sample_boxes((3, 2), H, W, (1.0, 1.0), torch.Generator().manual_seed(0))
        fallback = RandomResizedCrop.get_params(torch.empty(3, H, W), (1.0, 1.0), (3 / 4, 4 / 3))
        assert torch.equal(box, torch.tensor(fallback).float().expand(3, 2, 4))


@pytest.mark.parametrize(
    ("operation", "theirs"),
    [
        (BRIGHTNESS, F.adjust_brightness),
        (CONTRAST, F.adjust_contrast),
        (SATURATION, F.adjust_saturation),
    ],
)
def test_blend_is_pillows_and_kornias(operation: int, theirs) -> None:
    import kornia.enhance as kornia

    names = {
        BRIGHTNESS: "adjust_brightness_accumulative",
        CONTRAST: "adjust_contrast_with_mean_subtraction",
        SATURATION: "adjust_saturation_with_gray_subtraction",
    }
    images = [picture(48, 40, seed) for seed in range(4)]
    factors = torch.tensor([0.6, 0.9, 1.0, 1.4])
    ours = blend(tensor(*images), torch.full((4,), operation), factors)
    pillow = [theirs(image, float(f)) for image, f in zip(images, factors, strict=True)]
    assert difference(ours, tensor(*pillow))[1] < 2 * ROUNDING
    kornias = getattr(kornia, names[operation])(tensor(*images), factors)
    torch.testing.assert_close(ours, kornias, rtol=0, atol=2e-6)
    assert torch.equal(ours[2], tensor(images[2])[0])  # a factor of 1 changes nothing


def test_hue_is_pillows_and_kornias() -> None:
    import kornia.enhance as kornia

    images = [picture(48, 40, seed) for seed in range(5)]
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.07, 0.5])
    ours = shift_hue(tensor(*images), turns)
    kornias = kornia.adjust_hue(tensor(*images), 2 * math.pi * turns)
    torch.testing.assert_close(ours, kornias, rtol=0, atol=2e-5)
    pillow = [F.adjust_hue(image, float(t)) for image, t in zip(images, turns, strict=True)]
    assert difference(ours, tensor(*pillow))[0] < 2 * ROUNDING  # Pillow keeps the hue in 256 steps


def test_hue_of_corner_colours() -> None:
    """Black, white, grey and the six pure colours, a sixth of a turn at a time."""
    red, yellow, green, cyan, blue, magenta = [
        (1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1),
    ]  # fmt: skip
    wheel = [red, yellow, green, cyan, blue, magenta]
    greys = [(0, 0, 0), (1, 1, 1), (0.4, 0.4, 0.4)]
    x = torch.tensor([*wheel, *greys]).float().T.reshape(1, 3, 1, 9)
    for steps in range(-3, 4):
        turned = (
            torch.tensor([*(wheel[(i + steps) % 6] for i in range(6)), *greys]).float().T.reshape(1, 3, 1, 9)
        )
        torch.testing.assert_close(shift_hue(x.clone(), torch.tensor([steps / 6])), turned, rtol=0, atol=1e-5)


def test_jitter_runs_in_each_images_order() -> None:
    import kornia.enhance as kornia

    orders = list(itertools.permutations(range(4)))
    x = tensor(picture(20, 24)).expand(24, 3, 20, 24)
    generator = torch.Generator().manual_seed(0)
    factors = 0.6 + 0.8 * torch.rand(24, 3, generator=generator)
    turns = 0.2 * torch.rand(24, generator=generator) - 0.1
    keys = torch.tensor([[order.index(i) / 4 for i in range(4)] for order in orders])
    ours = jitter(x.clone(), in_order(factors, keys), turns)
    for n, order in enumerate(orders):
        image, (b, c, s), t = x[n : n + 1], factors[n], turns[n : n + 1]
        steps = [
            lambda i, b=b: kornia.adjust_brightness_accumulative(i, b),
            lambda i, c=c: kornia.adjust_contrast_with_mean_subtraction(i, c),
            lambda i, s=s: kornia.adjust_saturation_with_gray_subtraction(i, s),
            lambda i, t=t: kornia.adjust_hue(i, 2 * math.pi * t),
        ]
        for step in order:
            image = steps[step](image)
        torch.testing.assert_close(ours[n], image[0], rtol=0, atol=5e-5)
    assert difference(ours[0], ours[-1])[0] > 1e-3  # the order matters


def test_grey_is_pillows_and_kornias() -> None:
    from kornia.color import rgb_to_grayscale

    images = [picture(30, 30, seed) for seed in range(2)]
    ours = grayscale(tensor(*images), torch.tensor([True, False]))
    assert difference(ours[:1], tensor(F.to_grayscale(images[0], 3)))[1] < ROUNDING
    torch.testing.assert_close(luma(tensor(*images)), rgb_to_grayscale(tensor(*images)), rtol=0, atol=1e-6)
    assert torch.equal(ours[1], tensor(images[1])[0])


def test_solarize_is_pillows_and_kornias() -> None:
    from kornia.enhance import solarize as kornias

    images = [picture(30, 30, seed) for seed in range(2)]
    x = tensor(*images)
    ours = solarize(x.clone(), torch.tensor([True, False]))
    torch.testing.assert_close(ours[:1], tensor(F.solarize(images[0], 128)), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[:1], kornias(x[:1], 0.5), rtol=0, atol=1e-6)
    assert torch.equal(ours[1], x[1])
    edges = torch.tensor([0.0, 0.499, 0.5, 1.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(
        solarize(edges, torch.tensor([True])).flatten(), torch.tensor([0.0, 0.499, 0.5, 0.0])
    )


@pytest.mark.parametrize("shape", [(32, 32), (20, 27), (64, 64), (49, 75)])
def test_blur_is_kornias_and_near_pillows(shape: tuple[int, int]) -> None:
    from kornia.filters import gaussian_blur2d

    images = [picture(*shape, seed) for seed in range(4)]
    x, sigma = tensor(*images), torch.tensor([0.1, 0.7, 1.3, 2.0])
    ours = gaussian_blur(x, sigma, torch.ones(4, dtype=torch.bool), kernel_radius(2.0))
    kornias = gaussian_blur2d(x, 17, sigma[:, None].expand(4, 2), border_type="replicate")
    torch.testing.assert_close(ours, kornias, rtol=0, atol=2e-6)
    pillow = [i.filter(ImageFilter.GaussianBlur(float(s))) for i, s in zip(images, sigma, strict=True)]
    # Pillow's own is three box blurs, an approximation.
    assert difference(ours, tensor(*pillow))[0] < 2 * ROUNDING
    unblurred = gaussian_blur(x, sigma, torch.tensor([False, True, False, True]), kernel_radius(2.0))
    torch.testing.assert_close(unblurred[[0, 2]], x[[0, 2]], rtol=0, atol=1e-6)
    torch.testing.assert_close(unblurred[[1, 3]], ours[[1, 3]], rtol=0, atol=1e-6)


def test_grey_images_have_no_colour_to_change() -> None:
    x = tensor(picture(16, 16))[:, :1]
    assert torch.equal(shift_hue(x.clone(), torch.tensor([0.3])), x)
    assert torch.equal(grayscale(x.clone(), torch.tensor([True])), x)
    torch.testing.assert_close(
        blend(x.clone(), torch.tensor([SATURATION]), torch.tensor([0.3])), x, rtol=0, atol=1e-6
    )


def test_picture_has_contrast() -> None:
    """What the comparisons above rest on."""
    assert statistics.pstdev(picture(48, 48).convert("L").tobytes()) > 25
