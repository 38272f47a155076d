"""The crops of a run's first step, made again without its networks."""

from __future__ import annotations

from itertools import islice

import torch
from torch import Tensor

from dino_lab.building.check import check
from dino_lab.building.components import make_part, misfits
from dino_lab.building.seeding import crop_generator, seed_everything
from dino_lab.protocols import Augment, Data
from dino_lab.registry import Registry
from dino_lab.spec.model import Spec
from dino_lab.types import Views


def first_crops(spec: Spec, registry: Registry, device: torch.device, images: int) -> tuple[Tensor, Views]:
    """The first images of step 0 of a spec, and what augmentation makes of them: see `crops_of`."""
    check(spec, registry)
    data: Data = make_part(spec, registry, device, "data", device)
    augment: Augment = make_part(spec, registry, device, "augment")
    return crops_of(spec, data, augment, device, images)


def crops_of(
    spec: Spec, data: Data, augment: Augment, device: torch.device, images: int
) -> tuple[Tensor, Views]:
    """The first images of step 0, uint8 [N, C, H, W], and what augmentation makes of them, on the CPU.

    Random numbers are drawn for whole parts of a batch, as in the loop, so that the crops are those that the
    networks see; N is `images`, or less where a batch has fewer.
    """
    with misfits("train", "batch_size"):
        batch, _ = next(iter(data.train(spec.train.batch_size, spec.seed, 0)))
    seed_everything(spec.seed, "step", 0)
    generator = crop_generator(spec.seed, 0)
    wanted = min(images, len(batch))
    parts = batch.chunk(spec.train.accumulate)
    seen = [augment.forward(part, generator) for part in islice(parts, -(-wanted // len(parts[0])))]
    crops = [
        torch.cat(groups, dim=1)[:, :wanted].cpu() for groups in zip(*(v.crops for v in seen), strict=True)
    ]
    return batch[:wanted].cpu(), Views(crops, augment.pairs.cpu())
