"""Multi-crop as other libraries do it, with DINO's operations and probabilities (arXiv 2104.14294, App. E).

Each peer maps uint8 images [B, 3, H, W] to normalised float crops, by view, each [B, 3, size, size].
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor, nn

from dino_lab.components.augment.multicrop import MultiCrop
from dino_lab.components.data._labelled import IMAGENET_MEAN as MEAN
from dino_lab.components.data._labelled import IMAGENET_STD as STD
from dino_lab.network import Network

Crops = list[Tensor]
CPU = torch.device("cpu")
BLUR, SOLARIZE = (1.0, 0.1, 0.5), (0.0, 0.2, 0.0)  # of the first global view, the second, the local ones
SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class Setting:
    """Which crops are made of which images."""

    name: str
    pixels: int  # of a side of the images
    global_size: int
    local_size: int
    local_views: int
    batch: int = 64

    @property
    def sizes(self) -> list[int]:
        """Pixels of a side of each view."""
        return [self.global_size] * 2 + [self.local_size] * self.local_views

    def kinds(self) -> list[tuple[int, int, tuple[float, float]]]:
        """Of each view: its number in `BLUR` and `SOLARIZE`, its size, its share of the image's area."""
        large = [(view, self.global_size, (0.4, 1.0)) for view in (0, 1)]
        return large + [(2, self.local_size, (0.05, 0.4))] * self.local_views


def dino_lab(setting: Setting, device: torch.device = CPU) -> Callable[[Tensor], Crops]:
    """The `multicrop` of this project, with the normalisation that its network does."""
    augment = MultiCrop(
        global_size=setting.global_size, local_size=setting.local_size, local_views=setting.local_views
    )
    network = Network(nn.Identity(), nn.Identity(), mean=MEAN, std=STD).to(device)
    generator = torch.Generator()

    def crops(images: Tensor) -> Crops:
        views = augment.forward(images, generator).crops
        return [view for group in views for view in network.normalize(group).unbind(0)]

    return crops


def kornia(setting: Setting, device: torch.device = CPU) -> Callable[[Tensor], Crops]:
    """Kornia's transforms in a chain for each view, on the whole batch."""
    import kornia.augmentation as K

    chains = []
    for kind, size, scale in setting.kinds():
        chain = [
            K.RandomResizedCrop((size, size), scale=scale, resample="BICUBIC", align_corners=False),
            K.RandomHorizontalFlip(p=0.5),
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            K.RandomGrayscale(p=0.2),
            K.RandomGaussianBlur((17, 17), SIGMA, p=BLUR[kind]),
        ]
        chain += [K.RandomSolarize(0.0, 0.0, p=SOLARIZE[kind])] if SOLARIZE[kind] else []
        chains.append(nn.Sequential(*chain, K.Normalize(torch.tensor(MEAN), torch.tensor(STD))).to(device))

    def crops(images: Tensor) -> Crops:
        x = images.float() / 255
        return [chain(x) for chain in chains]

    return crops


class Blur:
    """Pillow's Gaussian blur with a drawn radius."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(random.uniform(*SIGMA)))


class Solarize:
    """Pillow's."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image, 128)


def pillow(setting: Setting) -> Callable[[Tensor], Crops]:
    """Torchvision's transforms on Pillow images, one by one, as facebookresearch/dino has them."""
    views = pillow_views(setting)
    return lambda images: _one_by_one(_pictures(images), views)


def pillow_views(setting: Setting) -> Callable[[Image.Image], list[Tensor]]:
    """All views of one image, each normalised [3, size, size]."""
    from torchvision import transforms as T

    def chain(kind: int, size: int, scale: tuple[float, float]) -> Callable[[Any], Tensor]:
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale, interpolation=T.InterpolationMode.BICUBIC),
                T.RandomHorizontalFlip(),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                T.RandomGrayscale(p=0.2),
                T.RandomApply([Blur()], p=BLUR[kind]),
                T.RandomApply([Solarize()], p=SOLARIZE[kind]),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
            ]
        )

    chains = [chain(*kind) for kind in setting.kinds()]
    return lambda picture: [chain(picture) for chain in chains]


def torchvision_v2(setting: Setting) -> Callable[[Tensor], Crops]:
    """Torchvision's second transforms on uint8 tensors; they draw once a call, so images go one by one."""
    from torchvision.transforms import v2

    def chain(kind: int, size: int, scale: tuple[float, float]) -> Callable[[Any], Tensor]:
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=scale, interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                v2.RandomGrayscale(p=0.2),
                v2.RandomApply([v2.GaussianBlur(17, SIGMA)], p=BLUR[kind]),
                v2.RandomSolarize(128, p=SOLARIZE[kind]),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    chains = [chain(*kind) for kind in setting.kinds()]
    return lambda images: _one_by_one(list(images), lambda image: [c(image) for c in chains])


def lightly(setting: Setting) -> Callable[[Tensor], Crops]:
    """Lightly's DINOTransform with its defaults, which are DINO's, on Pillow images."""
    from lightly.transforms import DINOTransform

    transform = DINOTransform(
        global_crop_size=setting.global_size,
        local_crop_size=setting.local_size,
        n_local_views=setting.local_views,
    )
    return lambda images: _one_by_one(_pictures(images), transform)


def _pictures(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()]


def _one_by_one(images: Sequence[Any], views: Callable[[Any], list[Tensor]]) -> Crops:
    return [torch.stack(view) for view in zip(*(views(image) for image in images), strict=True)]


PEERS: dict[str, Callable[[Setting], Callable[[Tensor], Crops]]] = {
    "dino-lab": dino_lab,
    "Kornia": kornia,
    "Pillow, as facebookresearch/dino": pillow,
    "torchvision v2 on tensors": torchvision_v2,
    "lightly": lightly,
}
BATCHED = ("Kornia",)  # as is dino-lab; the others take one image at a time, so they run in processes
