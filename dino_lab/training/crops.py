"""The crops of a run's first step, made again without its networks."""

from __future__ import annotations

import torch

from dino_lab.building.check import check
from dino_lab.building.components import make_component, misfits
from dino_lab.building.seeding import crop_generator, seed_everything
from dino_lab.protocols import Augment, Data
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.types import Images, Views


def first_crops(spec: Spec, registry: Registry, device: torch.device, images: int) -> tuple[Images, Views]:
    """The first images of step 0 of a spec, and what augmentation makes of them: see `crops_of`."""
    check(spec, registry)
    data: Data = make_component(spec, registry, device, "data", device)
    augment: Augment = make_component(spec, registry, device, "augment")
    return crops_of(spec, data, augment, device, images)


def crops_of(
    spec: Spec, data: Data, augment: Augment, device: torch.device, images: int
) -> tuple[Images, Views]:
    """The first images of step 0, and what augmentation makes of them, on the CPU.

    Images are uint8 [N, C, H, W], or of many sizes. The whole batch is made, as in the loop, so that the
    crops are those that the networks see; N is `images`, or less where a batch has fewer.
    """
    with misfits("train", "batch_size"):
        batch, _ = next(iter(data.train(spec.train.batch_size, spec.seed, 0)))
    seed_everything(spec.seed, "step", 0)
    generator = crop_generator(spec.seed, 0)
    wanted = min(images, len(batch))
    views = augment.forward(batch, generator)
    crops = [group[:, :wanted].cpu() for group in views.crops]
    return batch[:wanted].to(torch.device("cpu")), Views(crops, augment.pairs.cpu())
