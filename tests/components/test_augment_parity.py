"""On photographs, each operation against Pillow with the same parameters, and the whole against the reference's.

Differences are means over all pixels, in grey levels (1/255).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from dino_lab.building.seeding import drawing_from
from dino_lab.components.augment._lists import policy as listed
from dino_lab.components.augment._policy import Share
from dino_lab.components.augment.multicrop import MultiCrop
from dino_lab.components.data.parquet import Parquet
from dino_lab.kernels.crops import by_batch, by_crop
from dino_lab.kernels.crops.blur import gaussian_blur, kernel_radius
from dino_lab.kernels.crops.colour import (
    BRIGHTNESS,
    CONTRAST,
    SATURATION,
    blend,
    grayscale,
    shift_hue,
    solarize,
)

REAL = Path(os.environ.get("DINO_LAB_DATA", "/nowhere")) / "clothing10"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="no clothing10 in DINO_LAB_DATA")
N = 48
ALL = torch.ones(N, dtype=torch.bool)


@pytest.fixture(scope="module")
def photos() -> Tensor:
    """Uint8 [N, 3, 160, 160]."""
    data = Parquet(torch.device("cpu"), path=str(REAL), train="val.parquet", size=160)
    return next(data.bank(N))[0]


def pillow(photos: Tensor, operation: Callable[[Image.Image, float], Image.Image], values: Tensor) -> Tensor:
    done = [operation(F.to_pil_image(photo), float(v)) for photo, v in zip(photos, values, strict=True)]
    return torch.stack([F.pil_to_tensor(image) for image in done]).float()


def shares(seed: int = 0) -> Tensor:
    return torch.rand(N, generator=torch.Generator().manual_seed(seed))


# Ours of photographs in 0..1, Pillow's, what both are given, and the largest mean difference.
OPERATIONS: dict[
    str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., Image.Image], Tensor, float]
] = {
    "brightness": (
        lambda x, v: blend(x, ALL * BRIGHTNESS, v),
        F.adjust_brightness,
        0.6 + 0.8 * shares(),
        0.5,
    ),
    "contrast": (lambda x, v: blend(x, ALL * CONTRAST, v), F.adjust_contrast, 0.6 + 0.8 * shares(), 0.6),
    "saturation": (
        lambda x, v: blend(x, ALL * SATURATION, v),
        F.adjust_saturation,
        0.8 + 0.4 * shares(),
        0.6,
    ),
    "hue": (shift_hue, F.adjust_hue, 0.2 * shares() - 0.1, 0.5),
    "grey": (lambda x, v: grayscale(x, ALL), lambda image, v: F.to_grayscale(image, 3), shares(), 0.4),
    "solarize": (
        lambda x, v: solarize(x, ALL),
        lambda image, v: ImageOps.solarize(image, 128),
        shares(),
        1e-4,
    ),
    "blur": (
        lambda x, v: gaussian_blur(x, v, ALL, kernel_radius(2.0)),
        lambda image, v: image.filter(ImageFilter.GaussianBlur(v)),
        0.1 + 1.9 * shares(),
        0.7,
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name: str, photos: Tensor) -> None:
    ours, theirs, values, bound = OPERATIONS[name]
    difference = 255 * ours(photos / 255, values) - pillow(photos, theirs, values)
    mean = float(difference.abs().mean())
    print(f"{name}: {mean:.3f} of 255")
    assert mean < bound
    assert abs(float(difference.mean())) < 0.55  # Pillow cuts fractions off where it blends


@pytest.mark.parametrize(("way", "bound"), [(by_crop, 0.02), (by_batch, 0.35)], ids=["CPU", "GPU"])
@pytest.mark.parametrize(("size", "scale"), [(224, (0.4, 1.0)), (96, (0.05, 0.4)), (32, (0.4, 1.0))])
def test_crops_are_pillows(
    way: ModuleType, bound: float, size: int, scale: tuple[float, float], photos: Tensor
) -> None:
    (only,) = listed(1, size, [{"crop": {"scale": scale}}, "flip"]).passes
    with drawing_from(torch.Generator().manual_seed(0)):
        drawn = only.sample((N, 3, 160, 160), Share(1, N, slice(0, N)))
    ours = 255 * way.make(photos, drawn, size, 0)[0]
    theirs = []
    for photo, box, mirrored in zip(
        photos, drawn.boxes[0].int().tolist(), drawn.flipped[0].tolist(), strict=True
    ):
        crop = F.resized_crop(F.to_pil_image(photo), *box, [size, size], InterpolationMode.BICUBIC)
        theirs.append(F.pil_to_tensor(F.hflip(crop) if mirrored else crop))
    mean = float((ours - torch.stack(theirs)).abs().mean())
    print(f"crop to {size}: {mean:.4f} of 255")
    assert mean < bound


class Blur:
    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def reference(size: int, scale: tuple[float, float], blur: float, solar: float) -> T.Compose:
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(p=0.2),
            T.RandomApply([Blur()], p=blur),
            T.RandomSolarize(128, p=solar),
            T.ToTensor(),
        ]
    )


def statistics(crops: Tensor) -> Tensor:
    """Of crops [N, 3, H, W]: mean, spread, colourfulness and difference of neighbours, [4, N]."""
    colour = (crops.amax(1) - crops.amin(1)).mean((1, 2))
    step = (crops[..., 1:] - crops[..., :-1]).abs().mean((1, 2, 3))
    return torch.stack([crops.mean((1, 2, 3)), crops.std((1, 2, 3)), colour, step])


@pytest.mark.parametrize("pixels", [160, 40])
@pytest.mark.parametrize("way", [by_crop, by_batch], ids=["CPU", "GPU"])
def test_crops_are_distributed_as_the_references(
    way: ModuleType, pixels: int, photos: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Means over 6 times 48 crops of each kind of view, in pairs of the same photograph."""
    monkeypatch.setattr(by_crop, "make", way.make)
    photos = F.resize(photos, [pixels, pixels], antialias=True)
    augment = MultiCrop(global_size=48, local_size=24, local_views=1)
    kinds = [(48, (0.4, 1.0), 1.0, 0.0), (48, (0.4, 1.0), 0.1, 0.2), (24, (0.05, 0.4), 0.5, 0.0)]
    chains = [reference(*kind) for kind in kinds]
    random.seed(0)
    ours: list[list[Tensor]] = [[], [], []]
    theirs: list[list[Tensor]] = [[], [], []]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for repeat in range(6):
            crops = augment.forward(photos, torch.Generator().manual_seed(repeat)).crops
            images = [F.to_pil_image(photo) for photo in photos]
            for view, (some, chain) in enumerate(zip([*crops[0], crops[1][0]], chains, strict=True)):
                ours[view].append(statistics(some))
                theirs[view].append(statistics(torch.stack([chain(image) for image in images])))
    for a, b in zip(ours, theirs, strict=True):
        difference = torch.cat(a, dim=1) - torch.cat(b, dim=1)  # [4, 288]
        error = difference.std(1) / difference.shape[1] ** 0.5
        assert (difference.mean(1).abs() < 4 * error).all(), difference.mean(1) / error
