"""What this process sees of each batch: images, labels and crops."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from dino_lab import collectives
from dino_lab.protocols import CropsShares, GivesShares, ability
from dino_lab.training.build import Run
from dino_lab.types import Images, Views

Batch = tuple[Images, Tensor]


def batches(run: Run, start: int) -> Iterator[Batch]:
    """Images that `views` asks for, and labels int64 [B] of this process's images.

    From step `start` on. The images are its own, or where the augmentation has to see all, the whole batch.
    """
    size, seed, start = run.spec.train.batch_size, run.spec.seed, run.place(start)
    mine, data = collectives.share(size), run.data
    if ability(run.augment, CropsShares) is None or collectives.processes() == 1:
        return ((images, labels[mine]) for images, labels in data.train(size, seed, start))
    if (reading := ability(data, GivesShares)) is not None:
        return reading.train_share(size, seed, start, mine)
    return ((images[mine], labels[mine]) for images, labels in data.train(size, seed, start))


def views(run: Run, images: Images, step: int) -> Views:
    """The crops of this process's images in a step, which are the same however many processes there are."""
    generator, size = run.generator(step), run.spec.train.batch_size
    if collectives.processes() == 1:
        return run.augment.forward(images, generator)
    mine = collectives.share(size)
    if (cropping := ability(run.augment, CropsShares)) is not None:
        return cropping.forward_share(images, generator, size, mine.start)
    whole = run.augment.forward(images, generator)
    return Views([crops[:, mine] for crops in whole.crops], whole.pairs)
